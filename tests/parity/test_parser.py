"""The parser passes the bars on the gold captions, and the command says what is no folder of them."""

from tests.parity import parser


def test_bars_on_the_gold_captions(golden, capsys):
    assert parser.main([str(golden / "parser")]) == 0
    assert "all bars passed" in capsys.readouterr().out


def test_bars_of_the_learned_parser(subset, capsys):
    assert parser.main([str(subset / "parser"), "--parser", "learned"]) == 0
    assert "all bars passed" in capsys.readouterr().out


def test_a_missed_bar_fails(subset, capsys, monkeypatch):
    monkeypatch.setitem(parser.BARS["rules"], "all", {"strict": 0.99})
    assert parser.main([str(subset / "parser")]) == 1
    assert "2 bars missed" in capsys.readouterr().out


def test_other_folders_are_refused(tmp_path, capsys):
    assert parser.main([str(tmp_path)]) == 2
    assert "not a folder of gold triplets" in capsys.readouterr().err
