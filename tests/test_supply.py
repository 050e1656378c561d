"""What the CI runs is what was looked at: actions by commit, versions by hash, and no right that it does not need."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_by_commit_and_ask_for_nothing_but_to_read(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    lines = [line.strip() for line in text.splitlines() if "uses:" in line]
    assert lines and all(PINNED.fullmatch(line.removeprefix("- ")) for line in lines)
    assert "pull_request_target" not in text and "secrets." not in text
    for name, job in workflow["jobs"].items():
        assert "permissions" not in job and job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            # What a stranger writes, such as the title of a pull request, never becomes a command.
            assert "${{" not in step.get("run", ""), name
            if "actions/checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False, name


def locked() -> dict[str, list[str]]:
    """The lines of ci.lock by name: the version, then hashes."""
    blocks: dict[str, list[str]] = {}
    for line in (ROOT / "ci.lock").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==(\S+)", line):
            name = found[1]
            blocks.setdefault(name, []).append(found[2])
        elif "--hash=" in line:
            blocks[name].append(line.strip(" \\"))
        else:
            assert line.lstrip().startswith("#"), line
    return blocks


def test_the_lock_has_a_hash_for_every_version_and_a_version_for_every_floor():
    blocks = locked()
    assert all(any(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", row) for row in rows) for rows in blocks.values())
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        floor = Requirement(line)
        versions = [row for row in blocks[floor.name.lower().replace("_", "-")] if not row.startswith("--")]
        assert versions and all(version in floor.specifier for version in versions), line


def test_the_ci_installs_from_the_lock_and_audits_it():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    for target in ("check LOCK=ci.lock", "test LOCK=ci.lock", "test-slow LOCK=ci.lock", "audit"):
        assert re.search(rf"run: make {re.escape(target)}$", text, re.M)
