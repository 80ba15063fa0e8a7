"""Generated agent dialogues: records arrive, noise lies between, questions follow.

Knows the chat messages a model is trained and scored on. It knows no tokens and no model.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from agent_memory.pocket import data, values

Message = dict[str, Any]
DONE = "Done."
NOTED = "Noted."
PURPOSES = (
    "Look up a record.", "Look up a package.", "Look up one thing by its name.", "Look up what is known of a name.",
    "Look up an entry of the inventory.", "Look up the record of a package.",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How a dialogue is built; every share is a probability."""

    facts: int = 8
    questions: int = 4
    noise: float = 0.3
    similar: float = 0.3
    calls: float = 0.15
    updates: float = 0.0
    unknown: float = 0.0
    odd_fields: float = 0.08
    alike: float = 0.0
    mentions: float = 0.0
    echoes: float = 0.12
    varied: float = 0.2
    sizes: tuple[int, ...] = (1, 1, 2, 2, 3)  # fields of one record
    topics: tuple[str, ...] = data.FIELDS  # what dialogues are about whose facts are alike
    real: tuple[data.Record, ...] = ()
    layouts: tuple[str, ...] = data.LAYOUTS


@dataclass
class Script:
    """A dialogue with what a scorer needs: tools, the kind and layout of every scored turn, the lines asked about."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    told: int = 0  # how many messages come before the first question


def tool_schema(name: str, argument: str, purpose: str) -> dict[str, Any]:
    """A tool with one text argument, as chat templates take it."""
    properties = {argument: {"type": "string", "description": "The name."}}
    parameters = {"type": "object", "properties": properties, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": purpose, "parameters": parameters}}


def tool_call(tool: dict[str, Any], value: str) -> Message:
    """An assistant turn that calls the tool."""
    function = tool["function"]
    argument = next(iter(function["parameters"]["properties"]))
    call = {"type": "function", "function": {"name": function["name"], "arguments": {argument: value}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _tools(rng: random.Random) -> list[dict[str, Any]]:
    verb = rng.choice(("lookup", "look_up", "find", "read", "query", "get", "show", "fetch", values.word(rng)))
    name = rng.choice((verb, f"{verb}_{values.word(rng)}", f"{verb}_{rng.choice(('record', 'package', 'entry', 'info'))}"))
    argument = rng.choice(("name", "name", "package", "query", "key", "item", values.word(rng)))
    purpose = rng.choice((*PURPOSES, f"Look up {values.phrase(rng)}."))
    tools = [tool_schema(name, argument, purpose)]
    while rng.random() < 0.3 and len(tools) < 3:
        other = f"{values.word(rng)}_{values.word(rng)}"
        tools.append(tool_schema(other, values.word(rng), f"{values.phrase(rng).capitalize()}."))
    rng.shuffle(tools)
    return tools


def lookup_tool(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The tool of the list that looks things up."""
    return next(tool for tool in tools if tool["function"]["description"].startswith("Look up"))


@dataclass
class _Fact:
    name: str
    field: str
    value: str
    layout: str
    kind: str


def _records(rng: random.Random, shape: Shape) -> list[tuple[data.Record, str]]:
    found: list[tuple[data.Record, str]] = []
    total = 0
    pool = list(shape.real)
    # What recall brings together: facts on the same field, whose values begin alike, so that only the name tells them apart.
    alike = rng.sample(shape.topics, min(len(shape.topics), rng.choice((1, 2)))) if not pool and rng.random() < shape.alike else []
    while total < shape.facts:
        near = bool(found) and rng.random() < shape.similar
        if pool:
            record = pool.pop()
        else:
            like = rng.choice(found)[0].name if near else None
            record = data.make_record(rng, like=like, n_fields=min(rng.choice(shape.sizes), shape.facts - total))
        if any(record.name == other.name for other, _ in found):
            continue
        if alike:
            record = data.Record(record.name, {key: values.value(rng, key) for key in alike[: len(record.fields)]})
        fields = {_odd(rng, key, shape): _tangled(rng, record.name, key, text, found, shape) for key, text in record.fields.items()}
        found.append((data.Record(record.name, fields), "near" if near else "plain"))
        total += len(fields)
    return found


def _odd(rng: random.Random, name: str, shape: Shape) -> str:
    """Now and then a field outside the closed list, so that reading does not depend on the list."""
    return values.word(rng) if not shape.real and rng.random() < shape.odd_fields else name


def _tangled(rng: random.Random, name: str, key: str, text: str, found: list[tuple[data.Record, str]], shape: Shape) -> str:
    """Now and then a value made of the name's pieces, or one that another record has or nearly has."""
    if shape.real:
        return text
    if key not in {"files", "size", "port", "updated", "checksum"} and rng.random() < shape.echoes:
        return values.echo(rng, name)
    others = [other.fields[key] for other, _ in found if key in other.fields] or [
        value for other, _ in found for value in other.fields.values()
    ]
    return values.vary(rng, rng.choice(others)) if others and rng.random() < shape.varied else text


def _facts(rng: random.Random, shape: Shape) -> list[_Fact]:
    facts = []
    for record, kind in _records(rng, shape):
        layout = rng.choice(shape.layouts)
        facts += [_Fact(record.name, key, value, layout, kind) for key, value in record.fields.items()]
    if rng.random() < 0.4:
        rng.shuffle(facts)
    for fact in list(facts):
        if rng.random() < shape.updates:
            value = values.value(rng, fact.field)
            if value != fact.value:
                new = _Fact(fact.name, fact.field, value, rng.choice(shape.layouts), "update")
                facts.insert(rng.randrange(facts.index(fact) + 1, len(facts) + 1), new)
    return facts


def _tell(rng: random.Random, facts: list[_Fact], shape: Shape, tools: list[dict[str, Any]]) -> list[Message]:
    """The facts as messages: several in one tool output, or one user note, with noise around."""
    messages: list[Message] = []
    while facts:
        count = 1 if rng.random() < 0.2 else rng.randrange(1, 7)
        part, facts = facts[:count], facts[count:]
        lines = []
        for fact in part:
            if rng.random() < shape.noise:
                lines.append(data.noise(rng, rng.choice((1, 1, 2, 3))))
            if rng.random() < shape.mentions:
                lines.append(data.mention(rng, fact.name, fact.value if fact.field == "version" else None))
            lines.append(data.render_fact(fact.name, fact.field, fact.value, fact.layout))
            if rng.random() < shape.mentions:
                lines.append(data.mention(rng, fact.name, fact.value if fact.field == "version" else None))
        if rng.random() < shape.noise:
            lines.append(data.noise(rng, rng.choice((1, 1, 2, 3))))
        text = "\n".join(lines)
        if count == 1 and rng.random() < 0.6:
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": NOTED}]
        else:
            name = lookup_tool(tools)["function"]["name"] if tools else rng.choice(("lookup", "read", values.word(rng)))
            messages.append({"role": "tool", "name": name, "content": text})
    return messages


def _ask(rng: random.Random, fact: _Fact) -> list[Message]:
    form = data.QUESTIONS[0] if rng.random() < 0.5 else rng.choice(data.QUESTIONS)
    text = form.format(name=fact.name, field=fact.field)
    content = data.UNKNOWN if fact.kind == "unknown" else data.answer(fact.name, fact.field, fact.value)
    return [{"role": "user", "content": text}, {"role": "assistant", "content": content}]


def _call(rng: random.Random, facts: list[_Fact], tools: list[dict[str, Any]], shape: Shape) -> list[Message]:
    """Look something up: a call, its output, and what the assistant says then."""
    like = rng.choice(facts).name if facts and rng.random() < 0.5 else None
    record = data.make_record(rng, like=like, n_fields=rng.choice((1, 1, 2, 3)))
    layout = rng.choice(shape.layouts)
    key = rng.choice(sorted(record.fields))
    asked = rng.random() < 0.5
    text = f"Look up the {key} of {record.name}." if asked else data.lookup(record.name)
    tool = lookup_tool(tools)
    output = {"role": "tool", "name": tool["function"]["name"], "content": data.render(record, layout)}
    close = data.answer(record.name, key, record.fields[key]) if asked else DONE
    facts += [] if asked else [_Fact(record.name, key, record.fields[key], layout, "tool")]
    return [{"role": "user", "content": text}, tool_call(tool, record.name), output, {"role": "assistant", "content": close}]


def _latest(facts: list[_Fact]) -> list[_Fact]:
    """Only what still holds: of several facts on one name and field, the last."""
    return list({(fact.name, fact.field): fact for fact in facts}.values())


def _stranger(rng: random.Random, facts: list[_Fact]) -> _Fact:
    """A question about a name that never occurred, half of the time near one that did."""
    names = {fact.name for fact in facts}
    while True:
        name = data.make_name(rng, like=rng.choice(sorted(names)) if rng.random() < 0.5 else None)
        if name not in names:
            return _Fact(name, rng.choice(data.FIELDS), "", "", "unknown")


def script(rng: random.Random, shape: Shape) -> Script:
    """A whole dialogue: facts first, then each question once, in random order."""
    out = Script(tools=_tools(rng) if shape.calls else [])
    if out.tools and rng.random() < 0.5:
        out.messages.append({"role": "system", "content": f"{values.phrase(rng).capitalize()}."})
    facts = _facts(rng, shape)
    out.messages += _tell(rng, facts, shape, out.tools)
    out.told = len(out.messages)
    asked = _latest(facts)
    rng.shuffle(asked)
    asked = [_stranger(rng, facts) if rng.random() < shape.unknown else fact for fact in asked[: shape.questions]]
    out.needed = [data.render_fact(fact.name, fact.field, fact.value, fact.layout) for fact in asked if fact.layout]
    left = shape.questions  # each call may add a question, so calls must end before the questions can
    while asked:
        if out.tools and left > 0 and rng.random() < shape.calls:
            left -= 1
            turns, kind = _call(rng, asked, out.tools, shape), "call"
        else:
            fact = asked.pop()
            turns, kind = _ask(rng, fact), f"{fact.kind}/{fact.layout}"
        for turn in turns:
            if turn["role"] == "assistant":
                out.kinds[len(out.messages)] = kind if turn["content"] not in (DONE, NOTED) else "close"
            out.messages.append(turn)
    return out


def dialogue(rng: random.Random, shape: Shape | None = None) -> list[Message]:
    """A training sample as chat messages."""
    return script(rng, shape or Shape()).messages
