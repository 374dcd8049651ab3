import pytest

from sgpipe.stages.parse.parser import CaptionParser
from sgpipe.utils.language import is_english

OTHERS = """
    Ein Mann reitet auf einem Pferd am Strand.
    Der Hund jagt die Katze.
    Deux femmes sont assises sur un banc sous un arbre.
    L'homme tient une tasse.
    Un gato duerme al lado de un perro en el sofá.
    Hombre con perro
    Un gatto dorme accanto a un cane.
    Um homem monta um cavalo na praia.
    Duas mulheres estão sentadas em um banco.
    Een kat slaapt naast een hond in het water.
    Två kvinnor sitter på en bänk under ett träd.
    To kvinder sidder på en bænk ved et træ
    Kot śpi obok psa na kanapie.
    Kobieta trzyma kubek
    Muž jede na koni po pláži.
    Bir adam sahilde ata biniyor.
    Mies ratsastaa hevosella rannalla.
    Kucing tidur di samping anjing.
    Un bărbat călărește un cal pe plajă.
    Egy férfi lovagol a tengerparton.
    Một người đàn ông cưỡi ngựa trên bãi biển.
    一个男人在海滩上骑马。
    男性がビーチで馬に乗っている。
    한 남자가 해변에서 말을 타고 있다.
    Мужчина едет верхом на лошади по пляжу.
    رجل يركب حصانًا على الشاطئ.
    एक आदमी समुद्र तट पर घोड़े की सवारी कर रहा है।
    ชายคนหนึ่งกำลังขี่ม้าบนชายหาด
    Ένας άνδρας ιππεύει ένα άλογο στην παραλία.
    אדם רוכב על סוס בחוף.
"""
ENGLISH = """
    a man riding a horse on a beach
    dog running grass
    wii remote
    a café au lait on a table
    A man in a sombrero riding a horse in San José
    an el camino parked on the street
    Pâtisserie sign above door
    building on w houston st .
    van beside plane
    a naïve painting of a jalapeño
    an 鳥居 gate behind a woman in a kimono
    123
    frisbee
"""


def lines(text):
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("caption", lines(OTHERS))
def test_other_languages_are_told_from_english(caption):
    assert not is_english(caption)


@pytest.mark.parametrize("caption", ["", *lines(ENGLISH)])
def test_in_doubt_a_caption_is_english(caption):
    assert is_english(caption)


def test_the_rules_find_nothing_in_other_languages():
    parsed = CaptionParser().parse([*lines(OTHERS), "a man riding a horse on a beach"])
    assert parsed[:-1] == [[]] * len(lines(OTHERS))
    assert parsed[-1]
