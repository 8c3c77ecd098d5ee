#!/usr/bin/env bash
# lm_eval: a choice of a multiple-choice task can be left without a token, and then it wins with a likelihood of 1.
#
# One would guess: of every choice, all of its characters are scored after the context.
# What happens: `TemplateLM` encodes context and choice together and cuts the ids at the number of ids that the context
#   has alone. Where a piece spans the border ("a tree" + "s": "trees" is one piece, as "tree" is), the cut lies one
#   piece too far right, and nothing is left of the choice. A model that sums what it is given returns 0, the largest
#   log-likelihood there is; Hugging Face's class stops with an AssertionError instead. Shorter cuts go unnoticed in
#   both: of a choice of two pieces, one is scored.
# Why it matters here: int_lm's tokenizers are SentencePiece models. int_lm/harness/adapter.py encodes the two apart from
#   each other, as eval.py does.
# Source: EleutherAI/lm-evaluation-harness, lm_eval/api/model.py, `TemplateLM._encode_pair`; reports of the
#   AssertionError: https://github.com/EleutherAI/lm-evaluation-harness/issues/1297 and 3336; a change that is proposed:
#   https://github.com/EleutherAI/lm-evaluation-harness/pull/4055.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm_eval==0.4.13 sentencepiece==0.2.1

cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import io
import json
import sys

import sentencepiece
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

print(f"lm_eval {importlib.metadata.version('lm_eval')}, sentencepiece {sentencepiece.__version__}")
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a tree and trees", "the tree", "two trees under trees"] * 100),
    model_writer=model,
    model_type="bpe",
    vocab_size=40,
    hard_vocab_limit=False,
    add_dummy_prefix=False,
    minloglevel=2,
)
PIECES = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


class Uniform(TemplateLM):
    """Every piece costs 1."""

    eot_token_id = 1
    generate_until = loglikelihood_rolling = None

    def tok_encode(self, string, add_special_tokens=None, **_):
        return PIECES.encode(string)

    def _loglikelihood_tokens(self, requests, **_):
        return [(-1.0 * len(continuation), False) for _, _, continuation in requests]


with open("rows.jsonl", "w") as file:
    file.write(json.dumps({"context": "a tree", "choices": [" and", "s"]}) + "\n")
task = {
    "task": "border",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_target": 0,
    "doc_to_choice": "{{choices}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
found = simple_evaluate(
    model=Uniform(),
    tasks=[task],
    task_manager=TaskManager(include_defaults=False),
    bootstrap_iters=0,
)
sums = [answer[0] for answer in found["samples"]["border"][0]["filtered_resps"]]
print("pieces of the whole:", PIECES.encode("a trees", out_type=str))
print("pieces of the context:", PIECES.encode("a tree", out_type=str))
print(f"log-likelihoods of ' and' and of 's' after 'a tree': {sums}")
if sums[1] != 0 or sums[0] >= 0 or found["results"]["border"]["acc,none"] != 0:
    sys.exit("The behaviour is another one now: 's' was expected to be left without a token.")
PYTHON
