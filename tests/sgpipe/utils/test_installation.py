from dataclasses import replace

import pytest

import sgpipe.utils.installation
from sgpipe.utils.installation import code_fingerprint, installation


def test_equal_installations_fit_whatever_the_machine():
    here = installation()
    assert here.misfit(replace(here, machine="another")) is None
    assert here.other_libraries(replace(here, machine="another")) is None


def test_other_code_and_another_python_are_told():
    here = replace(installation(), machine="head", code="aaaa", version="1.0", python="3.12")
    assert here.misfit(replace(here, machine="w1", code="bbbb")) == (
        "machine w1 has sgpipe 1.0 (bbbb), this one 1.0 (aaaa): install the same sgpipe, from the same files, on all "
        "machines"
    )
    assert here.misfit(replace(here, machine="w1", python="3.11")) == (
        "machine w1 has Python 3.11, this one 3.12: use the same on all"
    )


def test_libraries_of_other_versions_are_a_note():
    here = replace(installation(), libraries={"torch": "2.9", "pillow": "12"})
    worker = replace(here, machine="w1", libraries={"torch": "2.8", "spacy": "3.8", "pillow": "12"})
    assert here.other_libraries(worker) == (
        "machine w1 has spacy 3.8 (here none), torch 2.8 (here 2.9): its labels may differ slightly"
    )


@pytest.mark.parametrize("change", ["content", "name"])
def test_the_fingerprint_is_that_of_the_code(tmp_path, monkeypatch, change):
    for package in ("sgpipe/utils", "rlip_model"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "some.py").write_text("x = 1\n")
    monkeypatch.setattr(sgpipe.utils.installation, "__file__", str(tmp_path / "sgpipe/utils/installation.py"))
    code_fingerprint.cache_clear()
    before = code_fingerprint()
    (tmp_path / "sgpipe/notes.txt").write_text("not code")
    code_fingerprint.cache_clear()
    assert code_fingerprint() == before
    if change == "content":
        (tmp_path / "rlip_model/some.py").write_text("x = 2\n")
    else:
        (tmp_path / "rlip_model/some.py").rename(tmp_path / "rlip_model/other.py")
    code_fingerprint.cache_clear()
    assert code_fingerprint() != before
    code_fingerprint.cache_clear()
