"""The model card, with scores measured on the spot: `python -m agent_memory.pocket.card`.

Knows what the card says. It measures nothing itself: `score` and `blocks` do.
"""

import argparse
import json
from pathlib import Path

from agent_memory.pocket import blocks, data, path, score

CARD = """\
# The pocket model

A small reader of records: `LlamaForCausalLM` with attention biases, 3.86 million parameters (15.4 MB, fp32), 4 layers, 8 query and
2 KV heads of 64, hidden size 320, vocabulary 3,072, window 512 tokens. It reads records in tool outputs and notes, answers
"What is the <field> of <name>?" with `<name> <field>: <value>`, and calls the listed tool when told "Look up <name>.".
**It is not a general assistant**: whatever is not a record, a question about one, or a lookup gets nonsense.

## Scores, inside the window

An answer counts when every token of the turn, restated name and field and the end included, is greedy decoding's choice.
Score A is the lower of the first two rows: **{score_a:.1%}** (the aim was 99%, at least 97%).

| what | exact | questions |
|---|---|---|
| generated records | {generated:.1%} | {questions[generated]} |
| real records (Python distributions and Debian packages, never trained on) | {real:.1%} | {questions[real]} |
| near-duplicate names, nine of ten names | {near_duplicates:.1%} | {questions[near_duplicates]} |
| tool calls, and answers from their outputs | {tool_calls:.1%} | {questions[tool_calls]} |
| records that were updated: the newest value | {updates:.1%} | {questions[updates]} |
| names that never occurred: says it does not know | {unknown:.1%} | {questions[unknown]} |

| layout | generated | real |
|---|---|---|
{layouts}

Far from the window, over a history of 8,192 tokens, the block of 32 tokens with the fact is among the 7 best by unrotated q.k of
layer 3 for {votes:.1%} of questions when each query and head votes by a softmax over the history, and for
{raw:.1%} by the raw products averaged over heads. Layers 1 and 2 look at neighbours and find nothing far away.

## Limits

- Exact copying is what it can do. It does not count, compare, translate, or summarise.
- It does not know that it does not know: asked about a name that never occurred, it makes something up. Training on such questions
  made it deny things it had been told.
- Of several values of one fact it often takes an older one.
- Values of more than about twelve tokens, names of more than about ten, and names with dots in "Look up <name>." fail more often.
- Layouts: name, then field, then value, each fact on its own line (`data.LAYOUTS`). Headers above several fields are not read.

## How it was made

```
python -m agent_memory.pocket.tokenizer
python -m agent_memory.pocket.train --budget-minutes 90
python -m agent_memory.pocket.score --json
```

Generated dialogues only; names of real packages (`real_records.json`) are rejected by the generator, and left out of the word
lists that the tokenizer learns from (`perl`, a section, and `Packaging` are met as values).
The start is not random: `circuit.py` lays down heads that look 1 to 8 tokens back and heads that copy after a match, so training
refines copying instead of discovering it. One CPU core, bf16 products, about 5,500 tokens a second beside other work, {step}
steps of 4,096 tokens (the first 130 of 8,192), {minutes} minutes in all. This run was steered by hand:
it was restarted from its checkpoint with Muon rates 0.005, 0.012, 0.004, 0.002, 0.0006, and 0.001 falling to 0, lengths 128, 256,
and 512, and, from the middle on, tangled values, blocks left out, and an average of the weights; in the last twenty minutes, with
0.003 falling to 0, on windows crowded with facts on one field and listings that name what is asked, which is what recall brings
together. Then 62 minutes at 0.0008 falling to 0, without updates and unknown names, the last 34 of them with crowds of pinned versions
and with dialogues of up to 1,536 tokens as recall shows them (`shapes.py`, `attend.as_recalled`). Rates of 0.004 and more that do not
fall leave noise in the circuit that keeps answers wrong, so the default is 0.001.
A second run from the defaults will differ in the digits.
"""


def write(folder: Path, questions: int) -> str:
    """Measure the model in the folder, and write its card there."""
    model, tokenizer = score.load(folder)
    scores = score.report(model, tokenizer, questions)
    far = blocks.recall(model, tokenizer)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    rows = [f"| {name} | {scores['generated_layouts'][name]:.1%} | {scores['real_layouts'][name]:.1%} |" for name in data.LAYOUTS]
    text = CARD.format(
        **scores,
        layouts="\n".join(rows),
        votes=far["votes layer 3"],
        raw=far["raw layer 3"],
        step=training["step"],
        minutes=round(training["seconds"] / 60),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the pocket model and write its card.")
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--questions", type=int, default=1000)
    args = parser.parse_args()
    print(write(args.model, args.questions))


if __name__ == "__main__":
    main()
