"""Every command of the README's table of formats, run on small files of the real shape."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from apps import cli
from data.detect import detect
from data.formats import FORMATS
from data.jsonl import read_records

README = Path(__file__).resolve().parents[2] / "README.md"
_SECTION = README.read_text("utf-8").split("\n## Data\n")[1].split("\n## ")[0]
TABLE = re.findall(r"^\| ([^|]+?) \| `(align data [^`]+)` \|", _SECTION, re.MULTILINE)


def _png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Pil.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _llava(**more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    return {"id": "1", "image": "a.png", "conversations": turns, **more}


def _example() -> dict[str, Any]:
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}]
    return {"kind": "example", "id": "1", "image": {"id": "a.png", "path": "a.png"}, "messages": turns}


def _preference() -> dict[str, Any]:
    said = [{"text": "A dog."}, {"text": "A cat."}]
    row = {**_example(), "kind": "preference", "responses": said, "choices": {"overall": 0}}
    return {**row, "messages": row["messages"][:1]}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the table's commands name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    said = [{"from": "gpt", "value": "A dog."}, {"from": "gpt", "value": "A cat."}]
    pair = {"output_1": said[0], "output_2": said[1], "preference": 1}
    images = [{"id": 1, "file_name": "a.png"}]
    captions = [{"id": 5, "image_id": 1, "caption": "A dog."}]
    boxes = [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]}]
    categories = [{"id": 3, "name": "dog"}]
    questions = [{"image_id": 1, "question": f"Q{k}?", "question_id": k} for k in (10, 11)]
    truths = [
        {"question_id": k, "image_id": 1, "answer_type": "yes/no", "multiple_choice_answer": word,
         "question_type": "is", "answers": []}
        for k, word in ((10, "yes"), (11, "no"))
    ]  # fmt: skip
    aokvqa = {
        "split": "train", "image_id": 1, "question_id": "q", "question": "Why?",
        "choices": ["a", "b", "c", "d"], "correct_choice_idx": 1, "direct_answers": ["b"],
        "rationales": ["r1", "r2", "r3"],
    }  # fmt: skip
    mmhal = {
        "question_type": "attribute", "question_topic": "food", "image_id": "i", "image_src": "http://h/a.png",
        "image_content": ["dog"], "question": "Q?", "gt_answer": "A.", "model_answer": "",
    }  # fmt: skip
    whole = {
        "llava_instruct_150k.json": [_llava()],
        "llava_7b_v1_preference.json": [_llava(**pair)],
        "image_to_caption.json": {"a.png": ["A dog."]},
        "llava_ppo50k.json": [_llava(caption_type=1, length_bonus=1.0)],
        "captions_train2017.json": {"images": images, "annotations": captions},
        "instances_train2017.json": {"images": images, "annotations": boxes, "categories": categories},
        "instances_val2017.json": {"images": images, "annotations": boxes, "categories": categories},
        "v2_OpenEnded_mscoco_train2014_questions.json": {"data_subtype": "train2014", "questions": questions},
        "v2_mscoco_train2014_annotations.json": {"annotations": truths},
        "aokvqa_v1p0_train.json": [aokvqa],
        "mmhal.json": [mmhal],
        "AMBER/annotations.json": [
            {"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
            {"id": 2, "type": "discriminative-hallucination", "truth": "yes"},
        ],
        "AMBER/relation.json": {},
        "AMBER/query_generative.json": [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}],
        "AMBER/query_discriminative.json": [{"id": 2, "image": "AMBER_1.jpg", "query": "Is there a dog?"}],
    }
    lines = {
        "own.jsonl": [_example()],
        "sft.jsonl": [_example()],
        "pairs.jsonl": [_preference()],
        "coco_pope_random.json": [{"question_id": 1, "image": "a.png", "text": "Is there?", "label": "yes"}],
        "questions.jsonl": [{"question_id": 0, "image": "a.png", "category": "conv", "text": "Q?"}],
    }
    for name, value in whole.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    for name, rows in lines.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    table = ["index\tquestion\thint\tA\tB\tanswer\tcategory\timage"]
    table.append("\t".join(["1", "Q?", "", "x", "y", "A", "c", base64.b64encode(_png()).decode()]))
    (tmp_path / "mmbench_dev.tsv").write_text("\n".join(table) + "\n")
    picture = {"bytes": _png(), "path": "a.png"}
    told = {"question": "Q?", "chosen": "A.", "rejected": "B."}
    common = {"ds_name": "RLHF-V", "image": picture, "origin_dataset": "o", "origin_split": "s", "idx": 0}
    one = {**common, "text": json.dumps(told), "image_path": "a.png"}
    pq.write_table(pa.Table.from_pylist([one]), tmp_path / "RLHF-V-Dataset.parquet")
    pq.write_table(pa.Table.from_pylist([{**common, **told}]), tmp_path / "RLAIF-V.parquet")
    flickr = tmp_path / "Flickr30kEntities"
    (flickr / "Sentences").mkdir(parents=True)
    (flickr / "Annotations").mkdir()
    (flickr / "Sentences/7.txt").write_text("[/EN#1/animals A dog] runs .\n" * 5)
    (flickr / "Annotations/7.xml").write_text(
        "<annotation><size><width>100</width><height>50</height><depth>3</depth></size><object><name>1</name>"
        "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>50</xmax><ymax>25</ymax></bndbox></object></annotation>"
    )
    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR/a.png").write_bytes(_png())
    return tmp_path


def test_the_table_names_every_family(files: Path) -> None:
    """Each format's family is what some command of the table reads or writes."""
    used = set()
    for _, command in TABLE:
        words = shlex.split(command)
        source = words[words.index("--format") + 1] if "--format" in words else detect(words[3])[0].name
        target = words[words.index("--to") + 1] if "--to" in words else "schema"
        used |= {FORMATS[name].family or name for name in (source, target) if name in FORMATS}
    assert used == {fmt.family or fmt.name for fmt in FORMATS.values()}


#: kinds that the commands make where they do not make conversations
KINDS = {"prompt": ("prompts", "pope", "mmhal", "amber", "bench"), "preference": ("pairs",)}


@pytest.mark.parametrize(("name", "command"), TABLE, ids=[name for name, _ in TABLE])
def test_the_command_works(name: str, command: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    if words[1] == "convert" and Path(words[3]).exists():
        words.append("--force")
    assert cli.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    if words[1] != "convert":
        assert "1 good, 0 bad" in said
        return
    assert re.search(r"^[1-9]\d* records written", said, re.MULTILINE)
    target = Path(words[3])
    if "--to" not in words:
        kinds = {record.kind for record in read_records(target)}
        wanted = [kind for kind, stems in KINDS.items() if target.stem in stems]
        assert kinds == {wanted[0] if wanted else "example"}
    else:
        # and back, to as many records as were given
        assert cli.main(["data", "convert", str(target), "back.jsonl"]) == 0, capsys.readouterr().err
        assert len(read_records("back.jsonl")) == 1


def test_a_data_set_s_folder_holds_the_pictures(files: Path) -> None:
    words = ["data", "convert", "sft.jsonl", "SET", "--to", "trl_messages", "--images", "DIR", "--dataset"]
    assert cli.main(words) == 0
    assert cli.main(["data", "convert", "SET", "back.jsonl"]) == 0
    (back,) = read_records("back.jsonl", "example")
    assert back.image.data == _png() and back.messages[1].content == "A dog."
    saved = ["data", "convert", "SET", "llava.json", "--to", "llava", "--save-images", "pictures"]
    assert cli.main(saved) == 0
    (row,) = json.loads((files / "llava.json").read_text())
    assert (files / "pictures" / row["image"]).read_bytes() == _png()
