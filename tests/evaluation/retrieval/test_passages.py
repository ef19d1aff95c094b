import csv
import json

import pytest

from lightning_minillm.evaluation import peerqa_source, scifact_source

ROWS = [
    {"query": "claim a", "text": "One two . Three four .", "rationale": "[0, 0, 0, 1, 1, 1]"},
    {"query": "claim b", "text": "Five . Six seven .", "rationale": "[1, 1, 0, 0, 0]"},
    {"query": "claim a", "text": "Five . Six seven .", "rationale": "[0, 0, 1, 1, 1]"},
    {"query": "claim c", "text": "Eight nine .", "rationale": "[1, 1, 1]"},
]


def write_table(file, rows=ROWS):
    with open(file, "w", newline="") as table:
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


def test_claims_are_asked_of_all_abstracts(tmp_path):
    found = scifact_source(write_table(tmp_path / "a.csv")).load()
    assert found.passages == tuple(dict.fromkeys(row["text"] for row in ROWS))
    assert [(q.text, q.candidates, set(q.relevant)) for q in found.questions] == [
        ("claim a", (0, 1, 2), {0, 1}),
        ("claim b", (0, 1, 2), {1}),
        ("claim c", (0, 1, 2), {2}),
    ]


def test_evidence_is_found_among_the_sentences_of_an_abstract(tmp_path):
    found = scifact_source(write_table(tmp_path / "a.csv"), unit="sentence").load()
    asked = [
        (q.text, [found.passages[p] for p in q.candidates], {found.passages[p] for p in q.relevant})
        for q in found.questions
    ]
    assert asked == [
        ("claim a", ["One two .", "Three four ."], {"Three four ."}),
        ("claim b", ["Five .", "Six seven ."], {"Five ."}),
        ("claim a", ["Five .", "Six seven ."], {"Six seven ."}),
    ]  # the last claim has no other sentence


@pytest.mark.parametrize("as_lists", [True, False])
def test_peerqa_asks_of_the_paragraphs_of_a_paper(as_lists, tmp_path):
    sentences = [
        {"paper_id": paper, "idx": index, "pidx": index // 2, "sidx": index % 2, "content": f"{paper}{index}"}
        for paper in ("p", "q")
        for index in range(4)
    ]
    sentences[:2] = sentences[1::-1]  # idx says in which order they are to be read
    (tmp_path / "papers.jsonl").write_text("\n".join(map(json.dumps, sentences)))
    mapped = [[[1], [0], [None]], [[2, 3]], []]  # what was not found in the text of the paper is None
    questions = [
        {
            "paper_id": paper,
            "question": f"{paper}?",
            "answer_evidence_mapped": {"sentence": ["s"] * len(groups), "idx": groups}
            if as_lists
            else [{"sentence": "s", "idx": group} for group in groups],
        }
        for paper, groups in zip("pqp", mapped, strict=True)
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, questions)))
    found = peerqa_source(str(tmp_path)).load()
    assert found.passages == ("p0 p1", "p2 p3", "q0 q1", "q2 q3")
    assert [(q.text, q.candidates, set(q.relevant)) for q in found.questions] == [
        ("p?", (0, 1), {0}),
        ("q?", (2, 3), {3}),
    ]


def test_peerqa_without_some_papers_keeps_the_questions_about_the_others(tmp_path):
    rows = [{"paper_id": "p", "idx": index, "pidx": index, "content": f"s{index}"} for index in range(2)]
    (tmp_path / "papers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [
        {"paper_id": paper, "question": f"{paper}?", "answer_evidence_mapped": [{"idx": [1]}]} for paper in ("q", "p")
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, asked)))
    with pytest.warns(UserWarning, match=r"1 questions about papers that are missing from papers\.jsonl are left out"):
        found = peerqa_source(str(tmp_path)).load()
    assert [(q.text, q.relevant) for q in found.questions] == [("p?", {1})]
    (tmp_path / "qa.jsonl").write_text(json.dumps(asked[0]))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="has no question with both relevant and irrelevant passages"),
    ):
        peerqa_source(str(tmp_path)).load()


def test_bad_input_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no path"):
        scifact_source(None).load()
    with pytest.raises(FileNotFoundError):
        scifact_source(str(tmp_path / "none.csv")).load()
    with pytest.raises(ValueError, match="no 'rationale'"):
        scifact_source(write_table(tmp_path / "b.csv", [{"query": "a", "text": "b"}])).load()
    with pytest.raises(ValueError, match="marks 3 tokens and the text has 1"):
        scifact_source(
            write_table(tmp_path / "c.csv", [{**ROWS[0], "text": "b", "rationale": "[0, 0, 1]"}]), "sentence"
        ).load()
    for rationale in ("[0, 1", "yes", "5"):
        with pytest.raises(ValueError, match=r"row 1: the rationale must be a list of 0 and 1, got"):
            scifact_source(
                write_table(tmp_path / "f.csv", [{**ROWS[0], "rationale": rationale}]), unit="sentence"
            ).load()
    with pytest.raises(ValueError, match="document or sentence, got 'word'"):
        scifact_source(write_table(tmp_path / "d.csv"), unit="word").load()
    with pytest.raises(ValueError, match="has no question with both relevant and irrelevant passages"):
        scifact_source(write_table(tmp_path / "e.csv", ROWS[3:])).load()


def test_real_scifact(data_folder):
    found = scifact_source(str(data_folder / "scifact" / "test.csv.gz")).load()
    assert (len(found.passages), len(found.questions)) == (165, 188)
    sentences = scifact_source(str(data_folder / "scifact" / "test.csv.gz"), unit="sentence").load()
    assert all(0 < len(q.relevant) < len(q.candidates) for q in sentences.questions)
    assert len(sentences.questions) > 180
