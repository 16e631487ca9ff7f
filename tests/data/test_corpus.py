from itertools import count, islice

from hypothesis import given
from hypothesis import strategies as st

from ultramem.data.corpus import Corpus, cut, ranked, sample, split_documents
from ultramem.data.sources import find_sources


def split(texts, fraction, seed=0):
    documents = [ranked(text, seed) for text in texts]
    return {document.text: name for name, document in split_documents(documents, fraction)}


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 20))
def test_cutting_keeps_every_character_and_the_limit(text, max_chars):
    parts = list(cut(text, max_chars))
    assert "".join(parts) == text
    assert all(0 < len(part) <= max_chars for part in parts)


def test_a_cut_follows_a_line_or_else_a_word():
    assert list(cut("one two\nthree four", 14)) == ["one two\n", "three four"]
    assert list(cut("one two three four", 14)) == ["one two three ", "four"]
    assert list(cut("short", 14)) == ["short"]


def test_the_share_of_validation_is_the_fraction():
    sides = list(split(map(str, range(20_000)), 0.1).values())
    assert abs(sides.count("validation") / len(sides) - 0.1) < 0.01  # 5 standard deviations


def test_neither_order_nor_company_changes_a_document_s_side_but_the_seed_does():
    texts = [str(number) for number in range(2000)]
    sides = split(texts, 0.1)
    assert split(texts[::-1], 0.1) == sides
    assert split(texts[:1000], 0.1) == {text: sides[text] for text in texts[:1000]}
    assert split(texts, 0.1, seed=1) != sides


def test_copies_stand_on_one_side():
    documents = [ranked(str(number % 50), 0) for number in range(1000)]
    sides = {(document.text, name) for name, document in split_documents(documents, 0.3)}
    assert len(sides) == 50


def test_a_small_corpus_gives_its_lowest_document_to_validation():
    texts = ["one", "two", "three"]
    lowest = min(texts, key=lambda text: ranked(text, 0).rank)
    assert split(texts, 1e-9) == {text: "validation" if text == lowest else "train" for text in texts}
    assert split(["one"], 1e-9) == {"one": "train"}
    assert split(["one", "one"], 1e-9) == {"one": "train"}


def test_splitting_looks_ahead_to_the_first_document_for_validation_only():
    taken = count()
    endless = (ranked(str(next(taken)), 0) for _ in iter(int, 1))
    assert len(list(islice(split_documents(endless, 0.05), 1000))) == 1000
    assert next(taken) <= 1001


def test_a_sample_is_bounded_fair_and_independent_of_order():
    documents = [ranked(f"{number:04d}", 0) for number in range(1000)]
    texts = sample(documents, max_chars=400)
    assert len(texts) == 100
    assert sample(documents[::-1], max_chars=400) == texts
    assert 400 < sum(map(int, texts)) / 100 < 600
    assert sample(documents, max_chars=10**6) == sample(documents[::-1], max_chars=10**6)
    assert sample([ranked("a very long text", 0)], max_chars=6) == ["a very"]


def test_a_pass_cuts_long_documents_counts_empty_ones_and_reports_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n{"text": ""}\n{"text": null}\n')
    (tmp_path / "b.txt").write_text("four")
    corpus = Corpus(find_sources([tmp_path]), text_field="text", max_document_chars=8, seed=0)
    heard = []
    for _ in range(2):
        assert [document.text for document in corpus.documents(heard.append)] == ["one two ", "three", "four"]
        assert corpus.num_empty == 2
        assert heard[-1] == corpus.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
