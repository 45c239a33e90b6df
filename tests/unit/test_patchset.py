"""Patch sets: what is read from a good one, and every rule broken once."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg.data import Data, find_data
from uklimg.errors import UserErrors
from uklimg.patchset import PatchSet, parse_patch, parse_patchset

pytestmark = pytest.mark.unit

GOOD = f"""From {"0" * 40} Mon Sep 17 00:00:00 2001
From: A Developer <dev@example.org>
Date: Wed, 1 Jan 2025 00:00:00 +0000
Subject: [PATCH] x86/ukl: say something about a rather long subject that
 goes on

The file lacks two lines. Without them nothing
works, so add them.

Signed-off-by: A Developer <dev@example.org>
Upstream: none (only of use
 to unikernels)
---
 a.c  | 3 ++-
 new/b.c | 2 ++
 2 files changed, 4 insertions(+), 1 deletion(-)
 create mode 100644 new/b.c

diff --git a/a.c b/a.c
index {"1" * 40}..{"2" * 40} 100644
--- a/a.c
+++ b/a.c
@@ -1,3 +1,4 @@ int f(void)
 one
-two
+TWO
++++ three
 four
diff --git a/new/b.c b/new/b.c
new file mode 100644
index {"0" * 40}..{"3" * 40}
--- /dev/null
+++ b/new/b.c
@@ -0,0 +1,2 @@
+x
+y
\\ No newline at end of file
"""


def problems(text: str | bytes, name: str = "0001-topic.patch") -> list[str]:
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(UserErrors) as caught:
        parse_patch(name, content)
    return [error.line() for error in caught.value.errors]


def test_a_good_patch_is_read() -> None:
    patch = parse_patch("0007-some-topic.patch", GOOD.encode())
    assert (patch.number, patch.topic) == (7, "some-topic")
    assert patch.subject == "x86/ukl: say something about a rather long subject that goes on"
    assert patch.body.startswith("The file lacks two lines.")
    assert patch.signed_off_by == ("A Developer <dev@example.org>",)
    assert patch.upstream == "none (only of use to unikernels)"
    # "+++ three" within a hunk is an added line, not a header.
    assert patch.added == (("a.c", 2), ("new/b.c", 2))
    assert patch.content == GOOD.encode()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("0" * 40 + " Mon", "1" * 40 + " Mon", "0001-topic.patch:1: the first line is not"),
        ("[PATCH] ", "[PATCH 1/2] ", "does not start with '[PATCH] ' (git format-patch -N)"),
        ("From: A Developer <dev@example.org>\n", "", "no 'From: name <address>'"),
        ("The file lacks two lines. Without them nothing\nworks, so add them.\n\n", "", "has no body"),
        ("Signed-off-by: A Developer <dev@example.org>\n", "", "no trailer 'Signed-off-by'"),
        ("Signed-off-by: A Developer <dev@example.org>", "Signed-off-by: me", "'me' is not 'name <address>'"),
        ("Upstream: none (only of use\n to unikernels)\n", "", "wants one trailer 'Upstream'"),
        ("Upstream: none (only of use\n to unikernels)", "Upstream: none", "wants one trailer 'Upstream'"),
        ("Upstream: none (only of use\n to unikernels)", "Upstream: backport 12ab", "wants one trailer 'Upstream'"),
        ("\n---\n", "\n", "no '---' line after the message"),
        ("1" * 40 + "..", "1" * 12 + "..", "shortened object names (git format-patch --full-index)"),
        ("@@ -1,3 +1,4 @@", "@@ -1,3 +1,5 @@", "0001-topic.patch:23: the hunk is not as long as its header says"),
        (" four\n", "", "the hunk is not as long"),
        ("@@ -0,0 +1,2 @@\n+x\n+y\n\\ No newline at end of file\n", "GIT binary patch\n", "new/b.c is binary"),
        ("end of file\n", "end of file\n-- \n2.39.5\n\n", "a signature at the end (git format-patch --no-signature)"),
        ("end of file\n", "end of file\nsurplus\n", "'surplus' is not part of a diff"),
        ("end of file\n", "end of file", "the last line has no newline"),
    ],
)
def test_each_rule(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(expected in problem for problem in found), found


def test_other_upstream_forms() -> None:
    for value in ("submitted https://lore.example.org/1", "backport 0123456789ab"):
        text = GOOD.replace("none (only of use\n to unikernels)", value)
        assert parse_patch("0001-a.patch", text.encode()).upstream == value


def test_names_and_encodings() -> None:
    assert "not named NNNN-topic.patch" in problems(GOOD, "1-topic.patch")[0]
    assert "not UTF-8" in problems(GOOD.encode() + b"\xff\n")[0]
    assert problems(b"")
    assert any("changes nothing" in problem for problem in problems(GOOD[: GOOD.index("diff --git")]))


def test_a_set_is_ordered_counted_and_digested() -> None:
    files = {"0002-b.patch": GOOD.encode(), "0001-a.patch": GOOD.encode()}
    patches = parse_patchset(files)
    assert [patch.name for patch in patches.patches] == ["0001-a.patch", "0002-b.patch"]
    assert patches.added_lines() == {"a.c": 4, "new/b.c": 4}
    renamed = parse_patchset({"0001-a.patch": GOOD.encode(), "0002-c.patch": GOOD.encode()})
    changed = parse_patchset({**files, "0002-b.patch": GOOD.replace("+x", "+z").encode()})
    assert len({patches.digest, renamed.digest, changed.digest, PatchSet().digest}) == 4
    assert parse_patchset({}) == PatchSet()


def test_all_errors_of_a_set_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        parse_patchset({"0001-a.patch": b"no\n", "0003-c.patch": GOOD.encode()}, "kernel/x/patches")
    lines = [error.line() for error in caught.value.errors]
    assert any(line.startswith("kernel/x/patches/0001-a.patch") for line in lines)
    assert any("number 0003 where 0002 is due" in line for line in lines)


@pytest.mark.parametrize("series", Data(find_data()).kernels())
def test_the_kernel_patches_of_this_repository(series: str) -> None:
    folder = Data(find_data()).kernel(series)
    on_disk = sorted(path.name for path in (find_data() / "kernel" / series / "patches").iterdir())
    assert [patch.name for patch in folder.patches.patches] == on_disk


def test_data_beside_the_package_or_in_it(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "uklimg"
    (package / "_data" / "kernel").mkdir(parents=True)
    (package / "_data" / "base-images").mkdir()
    (package.parent / "kernel").mkdir()
    (package.parent / "base-images").mkdir()
    assert find_data(package) == package / "_data"
