"""The documents against the code: settings, statistics, the README's example, links."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ByteSize

import kvstore
from kvstore.config import Config, Setting
from kvstore.tiers.base import ENTRY

ROOT = Path(__file__).parents[2]
SKIPPED = {".venv", "build", "dist", "node_modules"}
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part[0] == "." for part in page.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
LIKE = ', as a number of bytes or like "8 GiB"'


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("KVSTORE_")]:
        monkeypatch.delenv(name)


def shown(value: object) -> str:
    if isinstance(value, ByteSize):
        return value.human_readable(separator=" ").replace(".0", "") if value else "0"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value is None else f"{value:,}" if isinstance(value, int) else f'"{value}"'


def row(setting: Setting) -> str:
    allowed = setting.allowed.replace(LIKE, "")
    return f"| `{setting.key}` | `{shown(setting.value)}` | {allowed} | {setting.description} |"


def test_operations_has_every_setting_with_its_default() -> None:
    wanted = [row(setting) for setting in Config().explain()]
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    assert [
        line for line in lines if re.match(r"\| `(host|disk|index|mover|policy|trace|serve)\.\w+` \| `", line)
    ] == wanted


def test_the_sample_file_has_every_setting_with_its_default() -> None:
    sample = ROOT / "deploy" / "kvstore.toml"
    with sample.open("rb") as file:
        sections = tomllib.load(file)
    keys = {f"{section}.{name}" for section, values in sections.items() for name in values}
    assert keys == {setting.key for setting in Config().explain()}
    assert Config.load(sample) == Config()


def paths(stats: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in stats.items():
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_operations_explains_every_statistic() -> None:
    with kvstore.open(Config(host={"nbytes": "4 MiB"}, disk={"nbytes": "16 MiB"})) as store:
        store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=4096))
        found = {re.sub(r"^namespaces\.m\.", "namespaces.NAME.", path) for path in paths(store.stats())}
    _, _, text = (ROOT / "docs" / "operations.md").read_text().partition("## What stats() reports")
    named = set(
        re.findall(
            r"^\| `((?:lookups|traffic|tiers|index|mover|policy|trace|namespaces)\.[\w.]+)` \|", text, re.MULTILINE
        )
    )
    general = {re.sub(r"^tiers\.(host|disk)\.", "tiers.*.", path) for path in found}
    named = {re.sub(r"^tiers\.(TIER|host|disk)\.", "tiers.*.", path) for path in named}
    assert named == general


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page}: {link}"


def test_there_are_pages_to_check() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "docs/design.md", "docs/formats.md", "docs/operations.md", "docs/glossary.md"} <= names


def test_sections_that_the_code_refers_to_exist() -> None:
    design, formats = ((ROOT / "docs" / name).read_text() for name in ("design.md", "formats.md"))
    for heading in ("## Index and leases", "## Caching study"):
        assert heading in design
    for heading in ("## Namespace", "## Keys", "## Manifest", "## Segment file", "## Crash protocol"):
        assert heading in formats


def test_formats_has_the_entry_as_it_is() -> None:
    _, _, text = (ROOT / "docs" / "formats.md").read_text().partition("\nEntry (`ENTRY`")
    table = text[: text.index("**Unknown versions.**")]
    found = re.findall(r"^\| (\d+) \| (\d+) \| (\w+)(, u(?:32|64) LE)? \|", table, re.MULTILINE)
    kinds = {"": "|V32", ", u32 LE": "<u4", ", u64 LE": "<u8"}
    fields = {name: (int(offset), int(size), kinds[kind]) for offset, size, name, kind in found}
    assert ENTRY.fields is not None
    assert fields == {
        name: (offset, kind.itemsize, "|V32" if kind.shape else kind.str)
        for name, (kind, offset) in ((name, field[:2]) for name, field in ENTRY.fields.items())
    }


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    said = re.findall(r"# prints: (.*)", code)
    assert said and capsys.readouterr().out.splitlines() == said
