"""Conversions stream, are whole or absent, and lose nothing silently."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from data.convert import Source, convert
from data.formats import FORMATS
from data.images import open_image
from data.jsonl import DataError, read_records


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"x{k // 2}",
            "image": f"{k}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\nQuestion {k}?"},
                {"from": "gpt", "value": f"Answer {k} — “ünï”."},
            ],
        }
        for k in range(n)
    ]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the folder's files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def llava(path: Path) -> Source:
    return Source(path, FORMATS["llava"])


def test_there_and_back_again(tmp_path: Path) -> None:
    source, own, back = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "c.json"
    source.write_text(json.dumps(rows(7)))
    first = convert(llava(source), own, None)
    assert (first.written, first.bad, first.spare, first.changed) == (7, 0, {}, {})
    # repeated ids are told apart in our file, and are the source's own again on the way back
    assert [r.id for r in read_records(own)][:3] == ["x0", "x0#2", "x1"]
    assert convert(Source(own), back, FORMATS["llava"]).changed == {}
    assert json.loads(back.read_text()) == rows(7)
    assert back.read_text() == json.dumps(rows(7), indent=2, ensure_ascii=False) + "\n"
    lines = tmp_path / "c.jsonl"
    convert(Source(own), lines, FORMATS["llava"])
    assert [json.loads(line) for line in lines.read_text().splitlines()] == rows(7)


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    given = rows(3)
    given[0]["note"] = given[2]["note"] = 1
    source.write_text(json.dumps(given))
    found = convert(llava(source), tmp_path / "b.jsonl", None)
    assert found.spare == {"note": 2}
    own = tmp_path / "own.jsonl"
    text = (tmp_path / "b.jsonl").read_text().splitlines()
    own.write_text("\n".join([text[0][:-1] + ', "task": "t", "facts": {"captions": ["c"]}}', *text[1:]]))
    found = convert(Source(own), tmp_path / "c.json", FORMATS["llava"])
    assert found.written == 3 and found.changed == {"task": 1, "facts": 1}


def test_what_the_target_cannot_hold_is_a_bad_record_at_its_place(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    good = {"kind": "example", "id": "a", "messages": [{"role": "user", "content": "Q"}] * 1}
    good["messages"] = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    marked = {**good, "id": "b", "messages": [{"role": "user", "content": "<image> Q"}, good["messages"][1]]}
    own.write_text("\n".join(json.dumps(r) for r in (good, marked)))
    with pytest.raises(DataError, match=r"own\.jsonl:2: messages\.0\.content"):
        convert(Source(own), tmp_path / "c.json", FORMATS["llava"], strict=True)
    assert not (tmp_path / "c.json").exists()
    rejects = tmp_path / "rejects.jsonl"
    found = convert(Source(own), tmp_path / "c.json", FORMATS["llava"], max_bad=0.5, rejects=rejects)
    assert (found.written, found.bad) == (1, 1)
    assert json.loads(rejects.read_text())["record"]["id"] == "b"


def test_rejects_are_mended_and_fed_back(tmp_path: Path) -> None:
    source, own, rejects = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "rejects.jsonl"
    given = rows(4)
    del given[1]["conversations"][1]["value"]
    source.write_text(json.dumps(given))
    assert convert(llava(source), own, None, max_bad=0.5, rejects=rejects).bad == 1
    told = json.loads(rejects.read_text())
    assert told["index"] == 1 and told["key"] == "conversations.1.value" and told["mend"]
    told["record"]["conversations"][1]["value"] = "mended"
    rejects.write_text(json.dumps(told) + "\n")
    assert convert(llava(rejects), tmp_path / "more.jsonl", None).written == 1
    [record] = read_records(tmp_path / "more.jsonl")
    assert record.messages[-1].content == "mended"


def test_no_record_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text("[]")
    with pytest.raises(DataError, match="no record to convert"):
        convert(llava(source), tmp_path / "b.jsonl", None)
    source.write_text(json.dumps(rows(3))[:-30])
    with pytest.raises(DataError, match="not valid JSON"):
        convert(llava(source), tmp_path / "b.jsonl", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    """Thrice the records: their ids' hashes more, not their texts."""

    def peak(n: int) -> int:
        path = tmp_path / name
        given = rows(n)
        for k, row in enumerate(given):
            row["id"] = str(k)
            row["conversations"][1]["value"] = "word " * 200
        text = json.dumps(given) if name == "a.json" else "\n".join(map(json.dumps, given))
        path.write_text(text)
        del given, text
        tracemalloc.start()
        assert convert(llava(path), tmp_path / "out.jsonl", None).written == n
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # the least of two: what is made once (an import, a cache) is not the file's
    small, large = (min(peak(n), peak(n)) for n in (2000, 6000))
    # four thousand records of a kilobyte are four megabytes
    assert large - small < 1_000_000


def test_a_killed_conversion_leaves_all_or_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "a.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps(rows(20_000)))
    code = (
        "import sys; from pathlib import Path; from data.convert import Source, convert\n"
        "from data.formats import FORMATS; print('go', flush=True)\n"
        "convert(Source(Path(sys.argv[1]), FORMATS['llava']), Path(sys.argv[2]), None)"
    )
    command = [sys.executable, "-c", code, str(source), str(target)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole, took = target.read_bytes(), time.perf_counter() - began
    assert whole.count(b"\n") == 20_000
    killed = 0
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1):
        target.unlink(missing_ok=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"go\n"
            time.sleep(share * took * 0.6)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        assert not target.exists() or target.read_bytes() == whole
    assert killed >= 2
    # a file that was there stays as it was
    target.write_text("old")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"


def test_pictures_given_by_address_are_fetched_into_a_folder(tmp_path: Path) -> None:
    root, source = tmp_path / "images", tmp_path / "a.json"
    root.mkdir()
    Pil.new("RGB", (4, 4), "red").save(root / "red.png")
    given = rows(3)
    with served(root) as address:
        given[0]["image"] = f"{address}/red.png"
        given[1]["image"] = f"{address}/gone.png"
        given[2]["image"] = "red.png"
        source.write_text(json.dumps(given))
        asked = Source(source, FORMATS["llava"], images=root, fetch=root / "fetched")
        rejects = tmp_path / "rejects.jsonl"
        found = convert(asked, tmp_path / "b.jsonl", None, max_bad=0.5, rejects=rejects)
        assert (found.written, found.bad) == (2, 1)
        assert json.loads(rejects.read_text())["index"] == 1
        # without the flag nothing is fetched
        with pytest.raises(DataError, match="URL"):
            convert(Source(source, FORMATS["llava"], images=root), tmp_path / "c.jsonl", None, strict=True)
        outside = Source(source, FORMATS["llava"], images=root, fetch=tmp_path / "elsewhere")
        with pytest.raises(DataError, match="does not lie in the image root"):
            convert(outside, tmp_path / "c.jsonl", None)
    first = read_records(tmp_path / "b.jsonl")[0]
    assert first.image.url is None and first.image.path.startswith("fetched/")
    assert open_image(first.image, root).size == (4, 4)


def test_conversations_become_prompts_with_captions_as_facts(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    given = rows(2)
    given[1]["conversations"][1]["value"] = "Yes."
    source.write_text(json.dumps(given))
    asked = Source(source, FORMATS["llava"], prompts="detail", captions={"0.jpg": ["c"]})
    convert(asked, tmp_path / "b.jsonl", None)
    first, second = read_records(tmp_path / "b.jsonl", "prompt")
    assert (first.question, first.length_class, first.answer_type) == ("Question 0?", "detail", "general")
    assert (first.facts.captions, second.facts.captions, second.answer_type) == (["c"], [], "yes")
    # and to LLaVA-RLHF's layout and back
    back = tmp_path / "c.json"
    assert not convert(
        Source(tmp_path / "b.jsonl", kind="prompt"), back, FORMATS["llava_rlhf_prompts"]
    ).changed
    assert FORMATS["llava_rlhf_prompts"].read(back) == [first, second]
