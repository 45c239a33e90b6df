"""Sizes, ages and the limit in uklimg.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg.errors import UserError
from uklimg.storelimit import configured_limit, parse_age, parse_size

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("12", 12), ("1kB", 1000), ("20GB", 20 * 10**9), ("20g", 20 * 10**9), ("1.5TB", 15 * 10**11),
        ("1KiB", 1024), ("2GiB", 2 << 30), (" 3 MB ", 3 * 10**6),
    ],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("7d", 604800), ("2w", 1209600)])
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 PB", "1e9", "ten", "1,5GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)
    with pytest.raises(UserError, match="is not an age"):
        parse_age(text)


def test_the_limit_is_configuration(tmp_path: Path) -> None:
    config = tmp_path / "uklimg.toml"
    assert configured_limit(config) is None
    config.write_text("[mirrors]\n")
    assert configured_limit(config) is None
    config.write_text('[store]\nlimit = "20GB"\n')
    assert configured_limit(config) == 20 * 10**9
    config.write_text("[store]\nlimit = 1000\n")
    assert configured_limit(config) == 1000
    for value in ("true", "[1]", '"much"', "1.5"):
        config.write_text(f"[store]\nlimit = {value}\n")
        with pytest.raises(UserError, match=r"\[store\] limit: ") as caught:
            configured_limit(config)
        assert caught.value.line().startswith(str(config))
    for text, said in (
        ('[stoer]\nlimit = "1GB"\n', "unknown section [stoer] (there is mirrors, engine, store, "),
        ('[store]\nlimits = "1GB"\n', "unknown key 'limits' in [store] (it has limit)"),
        ('limit = "1GB"\n', "unknown section [limit] ("),
    ):
        config.write_text(text)
        with pytest.raises(UserError) as caught:
            configured_limit(config)
        assert caught.value.line().startswith(f"{config}: {said}"), "a slip must not be a limit that is not kept"
