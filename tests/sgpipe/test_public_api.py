"""The names that `import sgpipe` offers."""

import subprocess
import sys

import sgpipe


def test_every_public_name_can_be_imported() -> None:
    for name in sgpipe.__all__:
        assert getattr(sgpipe, name) is not None
    assert set(sgpipe.__all__) <= set(dir(sgpipe))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, sgpipe; print(*{'torch', 'ray', 'pyarrow', 'transformers', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_the_libraries_of_models_are_imported_only_for_work_that_is_left_to_do():
    script = (
        "import sys, sgpipe.generation.run; sys.exit(not {'transformers', 'torch._dynamo'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
