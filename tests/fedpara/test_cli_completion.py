"""Shell completion, asked as a shell asks."""

import os
import subprocess
import sys

import pytest

from fedpara.app import recipes

ENTRY = "from fedpara.cli import main; main()"


def complete(words, cwd=None, shell="bash"):
    """What is offered for the last of these words."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "_FEDPARA_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", ENTRY], env=environment, cwd=cwd, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def offered(line, cwd=None):
    return complete(["fedpara", *line.split(" ")], cwd)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_the_program(shell):
    done = subprocess.run(
        [sys.executable, "-m", "fedpara.cli", "completion", shell], capture_output=True, text=True, check=True
    )
    assert "_FEDPARA_COMPLETE" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_a_real_bash_completes_by_the_script(tmp_path):
    program = tmp_path / "fedpara"
    program.write_text(f"#!{sys.executable}\n{ENTRY}\n")
    program.chmod(0o755)
    script = (
        'eval "$(fedpara completion bash)"; COMP_WORDS=(fedpara simulate mnist-writers-p); COMP_CWORD=2;'
        '_fedpara_completion fedpara; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mnist-writers-personal"


def test_recipes_keys_and_choices_complete():
    assert set(recipes()) <= set(offered("simulate "))
    assert offered("simulate mnist-writers-f") == ["mnist-writers-few-labels"]
    assert "--rounds" in offered("simulate digits --ro")
    assert "--classification.partition" in offered("simulate digits --classi")
    assert offered("simulate digits --classification.norm g") == ["group"]
    assert offered("simulate digits --first-broadcast ") == ["seed", "weights"]
    assert offered("simulate digits --strategy fedp") == ["fedprox"]
    assert offered("simulate digits --logger tensorboard,w") == ["tensorboard,wandb"]
    assert "int4+entropy" in offered("simulate digits --uplink int4")
    assert offered("simulate digits --task kn") == ["knitting"]
    assert offered("compare x --link l") == ["lte"]
    assert "status" in offered("deploy s")


def test_the_words_offered_are_those_that_are_taken():
    from fedpara.cli.completion import _words
    from fedpara.codec import codec
    from fedpara.cost import LINKS
    from fedpara.models import MODELS
    from server.strategies import STRATEGIES

    assert {*_words("strategy", ())} == {*STRATEGIES}
    for spec in _words("uplink", ()):
        codec(spec)
    assert {*offered("compare x --link ")} == {*LINKS}
    assert {*MODELS} <= {*offered("size ")}


def test_runs_clients_and_own_recipes_complete(tmp_path):
    run = tmp_path / "runs" / "digits-1"
    run.mkdir(parents=True)
    (run / "rounds.jsonl").write_text("")
    (run / "ledger.jsonl").write_text('{"client": "north"}\n{"client": "south"}\nbroken')
    subprocess.run([sys.executable, "-m", "fedpara.cli", "new", str(tmp_path / "own")], check=True)
    assert offered("report runs/", tmp_path) == ["runs/digits-1"]
    assert offered("report ", tmp_path) == ["runs/digits-1"]
    assert offered("apply runs/digits-1 --client n", tmp_path) == ["north"]
    assert offered("simulate own/", tmp_path) == ["own/recipe.toml"]
    assert offered("simulate own/recipe.toml --my", tmp_path) == ["--my_task.hidden"]
