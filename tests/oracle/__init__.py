"""The reference that the library is held to, in Python integers and NumPy's int64.

Written from the equations in the modules' docstrings and in no way from their code: nothing here
uses jax, and tables are built by other means (error functions, float64) than the library's. Members
read one by one, with one loop per sum; the votes of all their tokens are summed in int64. There are
no chunks, no devices and no kernels. `step` is a whole training step made of these parts.

Tensors are nested lists of ints: a matrix [M][N], A [M][R], B [N][R]; a tree of them is a flat dict
of paths, a stacked tensor a list of its layers.
"""

from oracle import cache as cache, contexts as contexts, deep as deep, votes as votes
from oracle.arithmetic import (
    dither as dither,
    norm as norm,
    norm_credit as norm_credit,
    plain as plain,
    rounded_log2_root as rounded_log2_root,
    saturate as saturate,
    shift_down as shift_down,
    shift_floor as shift_floor,
    spare_bits as spare_bits,
)
from oracle.egg import block as block, cell as cell, gates as gates
from oracle.likelihood import (
    errors as errors,
    exp2_fraction_table as exp2_fraction_table,
    exp2_table as exp2_table,
    log2_likelihood as log2_likelihood,
    log2_table as log2_table,
    scaled_probabilities as scaled_probabilities,
)
from oracle.noise import (
    NOISE_VERSION as NOISE_VERSION,
    draw as draw,
    gaussian_quantiles as gaussian_quantiles,
    matrix_noise as matrix_noise,
    rounding as rounding,
    threefry2x32 as threefry2x32,
    vector_noise as vector_noise,
)
from oracle.perturb import (
    bare as bare,
    embed as embed,
    linear as linear,
    perturbed_matrix as perturbed_matrix,
    perturbed_vector as perturbed_vector,
    readout as readout,
)
from oracle.pool import settled as settled
from oracle.population import (
    member_weights as member_weights,
    numbered as numbered,
    read as read,
    read_token as read_token,
    tensors as tensors,
)
from oracle.step import State as State, step as step
from oracle.update import (
    adapted as adapted,
    adaptive_rate as adaptive_rate,
    betas as betas,
    carried as carried,
    dither_words as dither_words,
    eight_bits as eight_bits,
    entries as entries,
    fitness as fitness,
    learning_rate as learning_rate,
    magnitude_limit as magnitude_limit,
    moved as moved,
    normalised as normalised,
    of_eight_bits as of_eight_bits,
    randomly_moved as randomly_moved,
    vote_limit as vote_limit,
    vote_threshold as vote_threshold,
)
from oracle.votes import matrix_votes as matrix_votes, vector_votes as vector_votes
