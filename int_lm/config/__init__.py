"""Configuration: its fields (`schema`), files (`load`), checks (`validate`) and flags.

`command_line` makes the flags. Nothing here imports jax, so that `--help` and errors about flags
appear at once.
"""

from int_lm.config.load import (
    RECORD_SUFFIXES as RECORD_SUFFIXES,
    SECTIONS as SECTIONS,
    from_dict as from_dict,
    load as load,
    source_by_name as source_by_name,
    sources_of as sources_of,
    to_dict as to_dict,
    to_yaml as to_yaml,
)
from int_lm.config.schema import (
    Config as Config,
    ControlConfig as ControlConfig,
    DataConfig as DataConfig,
    DistributedConfig as DistributedConfig,
    EsConfig as EsConfig,
    MixtureConfig as MixtureConfig,
    ModelConfig as ModelConfig,
    RewardConfig as RewardConfig,
    RunConfig as RunConfig,
    SourceConfig as SourceConfig,
)
from int_lm.config.validate import validate as validate
