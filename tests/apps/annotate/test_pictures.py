"""Pictures over HTTP: nothing outside the image root, nothing that is no picture, each of its own type."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image as Pil
from sqlalchemy import update

from apps.annotate.tables import pairs
from data.schema import Image
from tests.apps.annotate.conftest import Enter, MakeProject, Project, code_of, pair


def with_picture(make_project: MakeProject, path: str) -> Project:
    """A project with one pair, whose picture's path was changed behind the back of the import's checks."""
    project = make_project(1)
    record = pair("000").model_copy(update={"image": Image(id="i", path=path), "choices": {}})
    changed = update(pairs).values(record=record.model_dump_json())
    project.service.store.write(lambda connection: connection.execute(changed).rowcount)
    return project


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside.png"
    Pil.new("RGB", (3, 3)).save(path)
    return path


def test_no_file_outside_the_image_root(make_project: MakeProject, enter: Enter, outside: Path) -> None:
    for path in (
        "../../outside.png",
        str(outside),
        "a/../../../outside.png",
        "../votes.db",
        "nothing.png",
        ".",
    ):
        project = with_picture(make_project, path)
        ann = enter(f"ann{len(path)}", of=project)
        found = ann.get(f"image/{ann.post('next').json()['pair']}")
        assert code_of(found) == (404, "not_found"), path
        # and no path in the words
        assert "outside" not in found.text and str(project.folder) not in found.text


def test_no_link_leads_out_of_the_image_root(make_project: MakeProject, enter: Enter, outside: Path) -> None:
    project = with_picture(make_project, "link.png")
    link = project.folder / "images" / "link.png"
    link.symlink_to(outside)
    ann = enter("ann", of=project)
    pair_ = ann.post("next").json()["pair"]
    assert ann.get(f"image/{pair_}").status_code == 404
    link.unlink()
    link.symlink_to("cat.png")
    assert ann.get(f"image/{pair_}").status_code == 200
    link.unlink()
    link.symlink_to("link.png")
    assert ann.get(f"image/{pair_}").status_code == 404


def test_paths_in_the_address_lead_nowhere(enter: Enter) -> None:
    ann = enter("ann")
    ann.post("next")
    for path in ("../votes.db", "..%2f..%2fvotes.db", "%2e%2e/votes.db", "images/cat.png", "cat.png", "%00"):
        assert ann.http.get(f"/api/image/{path}").status_code == 404, path


def test_a_picture_has_its_own_type_and_is_cached(project: Project, enter: Enter) -> None:
    ann, bob = enter("ann"), enter("bob")
    pair_ = ann.post("next").json()["pair"]
    found = ann.get(f"image/{pair_}")
    assert found.headers["content-type"] == "image/png"
    assert found.content == (project.folder / "images" / "cat.png").read_bytes()
    assert "private" in found.headers["cache-control"]
    etag = found.headers["etag"]
    again = ann.get(f"image/{pair_}", **{"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    # who was not given the pair learns nothing by a tag
    assert bob.get(f"image/{pair_}", **{"If-None-Match": etag}).status_code == 404
    # another picture in its place has another tag, whatever it is called
    Pil.new("RGB", (9, 9)).save(project.folder / "images" / "cat.png", format="JPEG")
    os.utime(project.folder / "images" / "cat.png", (1, 1))
    found = ann.get(f"image/{pair_}", **{"If-None-Match": etag})
    assert (found.status_code, found.headers["content-type"]) == (200, "image/jpeg")
    assert found.headers["etag"] != etag


def test_what_is_no_picture_is_not_sent(make_project: MakeProject, enter: Enter) -> None:
    project = with_picture(make_project, "page.png")
    file = project.folder / "images" / "page.png"
    ann = enter("ann", of=project)
    pair_ = ann.post("next").json()["pair"]
    for text in ("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "<html>", ""):
        file.write_text(text)
        assert ann.get(f"image/{pair_}").status_code == 404
    # formats that browsers do not show are sent as PNG
    Pil.new("RGB", (5, 4)).save(file, format="TIFF")
    found = ann.get(f"image/{pair_}")
    assert found.headers["content-type"] == "image/png" and found.content.startswith(b"\x89PNG")
