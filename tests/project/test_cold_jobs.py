"""The jobs of `python -m benchmarks.startup --against REV` do what they say; nothing is timed here."""

import subprocess

import jax
import numpy as np
import pytest

from benchmarks import against, cold


def test_the_jobs_are_those_that_the_table_names():
    assert tuple(cold.JOBS) == against.JOBS and set(against.AT_MOST) <= set(against.NAMES)


def test_what_git_does_not_know_and_jobs_that_are_none_are_refused():
    with pytest.raises(SystemExit, match="--only: expected some of import jaxem, .*, got lunch"):
        against.compare("HEAD", ("lunch",), 1)
    with pytest.raises(SystemExit, match="--against no-such-revision: .*no-such-revision"):
        against.compare("no-such-revision", ("import jaxem",), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", against.JOBS)
def test_a_job_has_a_finite_result(name):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cold.JOBS[name]()))


@pytest.mark.slow
def test_another_revision_is_built_timed_and_removed():
    said = against.compare("HEAD", ("import jaxem", "init"), 1).splitlines()
    assert [line.split("  ")[0] for line in said[2:]] == ["import jaxem", "init", "import jaxem / import jax"]
    trees = subprocess.run(["git", "worktree", "list"], cwd=against.ROOT, capture_output=True, text=True, check=True)
    assert "jaxem-against" not in trees.stdout
