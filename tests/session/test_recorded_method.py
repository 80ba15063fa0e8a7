"""A Session keeps the method its memory was made with, whatever a Runtime would take today, and says so."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory import Runtime
from agent_memory.attention.methods import make_method
from agent_memory.errors import ConfigError
from agent_memory.recorded_method import method_of, what_is_recorded
from tests.session.conftest import MakeRuntime

SMALL = "recall:attended=256:local=64"


def fill(session: Any, tokens: int) -> None:
    while session.tokens < tokens:
        session.append("user", f"The {session.tokens}th line says nothing new about the weather over the hills.")


def spec_in_use(session: Any) -> str:
    spec = session.engine.method.spec
    assert isinstance(spec, str)
    return spec


def test_a_session_keeps_its_method(make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture) -> None:
    with make_runtime(method=SMALL, border=None).session("a") as session:
        fill(session, 700)
        made, said = spec_in_use(session), session.reply("What is it about?", max_new_tokens=8)
    assert ":attended=256:" in made and ":local=80:" in made and "score=max" in made
    assert not caplog.records
    for other in ("recall", "streaming", "recall:score=mass"):
        caplog.clear()
        with make_runtime(method=other, border=None).session("a") as session:
            assert spec_in_use(session) == made
            last = session.last_turn
            assert last is not None
            with session.fork(f"fork-{other.replace(':', '-')}", at=last.index - 1) as child:
                assert spec_in_use(child) == made
                assert child.reply("What is it about?", max_new_tokens=8) == said
        assert "keeps the method its memory was made with" in caplog.text and made in caplog.text
    caplog.clear()
    with make_runtime(method=SMALL, border=None).session("a") as session:
        assert spec_in_use(session) == made
    assert not caplog.records


def test_another_method_reads_it_only_where_that_is_asked_for(make_runtime: MakeRuntime) -> None:
    with make_runtime(method="full").session("a") as session:
        fill(session, 600)
        assert spec_in_use(session) == "full"
    with make_runtime(method=SMALL, border=None).session("a", reinterpret=True) as session:
        assert "attended=256" in spec_in_use(session)
        with session.fork("b") as child:
            assert "attended=256" in spec_in_use(child)
            child.reply("What is it about?", max_new_tokens=4)
            assert child.last_recall is not None and child.last_recall.blocks > 0


def test_the_window_is_part_of_it(make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture) -> None:
    with make_runtime(method="streaming", window=512).session("a") as session:
        fill(session, 600)
    with make_runtime(method="streaming", window=256).session("a") as session:
        assert session.engine.method.attended == 512
    assert "window 512" in caplog.text


def test_a_session_of_the_first_version_has_its_default(caplog: pytest.LogCaptureFixture) -> None:
    first = make_method("recall:score=max:attended=512:local=240:blocks=7", 512)
    mine = make_method("recall:score=mass", 512)
    found = method_of("old", {"border": 512}, mine, 512, make_method)
    assert found.spec == first.spec and found.sizes == first.sizes and found.border == 512
    assert "keeps the method" in caplog.text
    wide = method_of("old", {}, mine, 100_000, make_method)
    assert wide.sizes is not None and (wide.sizes.attended, wide.sizes.recalled, wide.sizes.sink) == (8192, 3584, 32)


def test_a_session_of_before_there_was_a_reach_reaches_as_far_as_its_window(caplog: pytest.LogCaptureFixture) -> None:
    written = "recall:score=mass:attended=512:local=64:group=16:blocks=52:positions=true:estimate_unread=true"
    mine = make_method("recall:attended=512", 2048)
    assert mine.spec is not None and ":reach=1024" in mine.spec and ":probes=256" in mine.spec
    found = method_of("old", {"method": written, "window": 2048}, mine, 2048, make_method)
    assert found.spec is not None and ":reach=2048" in found.spec and ":probes=0" in found.spec
    assert "keeps the method" in caplog.text
    combined = method_of("old", {"method": f"{written}+rerope", "window": 2048}, mine, 2048, make_method)
    assert combined.spec is not None and ":reach=2048" in combined.spec and "+rerope" in combined.spec


def test_a_session_of_a_fixed_number_of_clusters_keeps_it() -> None:
    mine = make_method("recall:probes=64", 2048)
    assert mine.spec is not None and ":most_probes=64" in mine.spec
    written = ":".join(option for option in mine.spec.split(":") if "most_probes" not in option)
    found = method_of("old", {"method": written, "window": 2048}, make_method("recall", 2048), 2048, make_method)
    assert found.spec == mine.spec


def test_a_session_of_clusters_of_128_keeps_them_and_looks_into_an_eighth() -> None:
    mine = make_method("recall", 2048)
    assert mine.spec is not None and ":cluster_tokens=32" in mine.spec
    written = mine.spec.replace(":cluster_tokens=32", "").replace(":probed_share=0.18", "")
    found = method_of("old", {"method": written, "window": 2048}, mine, 2048, make_method)
    assert found.spec == mine.spec.replace("cluster_tokens=32", "cluster_tokens=128").replace("probed_share=0.18", "probed_share=0.125")


def test_a_session_of_before_messages_had_a_focus_brings_nothing_near() -> None:
    mine = make_method("recall", 2048)
    assert mine.focus is not None and mine.focus.blocks == 1 and mine.spec is not None
    written = ":".join(option for option in mine.spec.split(":") if not option.startswith("focus"))
    found = method_of("old", {"method": written, "window": 2048}, mine, 2048, make_method)
    assert found.focus is not None and found.focus.blocks == 0
    again = method_of("new", {"method": mine.spec, "window": 2048}, mine, 2048, make_method)
    assert again.focus == mine.focus and again.positions == mine.positions


def test_every_option_is_written_down(runtime: Runtime) -> None:
    spec = what_is_recorded(runtime.method(0), 512, None)["method"]
    again = make_method(spec, 512, choosers=frozenset({2}))
    assert again.spec == spec and again.sizes == runtime.method(0).sizes
    for option in ("echo=4.0", "margin=2.0", "heard=12", "scope=layer", "attended=512", "group=16", "positions=packed"):
        assert option in spec
    assert what_is_recorded(make_method("recall:score=mass", 512), 512, None)["method"].startswith("recall:score=mass:attended=512:")


def test_a_method_that_needs_more_room_is_refused(make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture) -> None:
    with make_runtime(method="recall:score=mass:blocks=2000", window=2048, budget=None, border=None).session("a") as session:
        session.append("user", "Hello.", prefill=False)
    with (
        make_runtime(window=2048, border=None).session("a") as session,
        pytest.raises(ConfigError, match=r"needs 4000 blocks .*Budget.device"),
    ):
        session.reply("Again.", max_new_tokens=2)


def test_options_of_the_other_score_are_refused() -> None:
    for spec, message in {
        "recall:score=mass:echo=2": "echo is an option of score=max",
        "recall:score=max:estimate_unread=true": "estimate_unread is an option of score=mass",
        "recall:score=best": "choose one of mass, max",
        "recall:positions=near": "choose one of clipped, true, packed",
        "recall:attended=4096": "attended=4096 cannot be used",
        "recall:reach=60": "reach=60 cannot be used: it must be between",
        "recall:attended=256:positions=true:reach=200": "reach=200 cannot be used: it must be between 256",
        "recall:attended=256:local=250": "local=250 cannot be used",
        "recall:score=mass:attended=144:local=8:group=8": "local=8 cannot be used: it must be between 24",
        "recall:probes=-1": "probes=-1 cannot be used",
        "recall:most_probes=100": "most_probes=100 cannot be used; it must be at least 256",
        "recall:probed_share=18": "probed_share=18.0 cannot be used; it must be from 0 to 1",
        "recall:positions=true:focus=1": "only clipped keys can be brought near",
        "recall:focus=100": "focus=100 cannot be used: it must be between 0 and",
        "recall:focus_distance=20": "focus_distance=20 cannot be used: it must be between",
        "recall:cluster_tokens=1": "cluster_tokens=1 cannot be used",
        "streaming:attended=4096": "attended=4096 cannot be used",
    }.items():
        with pytest.raises(ConfigError, match=message):
            make_method(spec, 512)
    with pytest.raises(ConfigError, match="options of recall that are unknown: ecco"):
        make_method("recall", 512, settings={"ecco": 3})


def test_what_a_checkpoint_names_fills_what_is_not_given() -> None:
    settings = {"score": "max", "attended": 512, "local": 240, "echo": 2.0}
    assert "echo=2.0" in str(make_method("recall", 512, settings=settings).spec)
    assert "echo=3.0" in str(make_method("recall:echo=3", 512, settings=settings).spec)
    assert "local=80" in str(make_method("recall:score=mass", 512, settings=settings).spec)
