"""The folder of a reader who has everything that the pages name, at toy size."""

import gzip
import json
import shutil

import pytest

from lightning_minillm.data import SyntheticSizes, generate_corpus, generate_records, write_synthetic
from lightning_minillm.models import load_tokenizer

SIZES = SyntheticSizes(train=60, validation=6, test=6, corpus=40, references=2, vocab_size=400)
# Folders of models; a folder of this name in the working directory comes before a model of the hub.
MODELS = "gpt2 gpt2-medium gpt2-xl FOLDER runs/teacher/student runs/init/student".split()
CHAT_MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B-Instruct")


@pytest.fixture(scope="session")
def everything(tmp_path_factory, make_model, make_chat_tokenizer):
    """Data, models and texts under the names that the pages use."""
    folder = tmp_path_factory.mktemp("reader")
    write_synthetic(folder / "my_data", 0, SIZES)
    tokenizer = load_tokenizer(folder / "my_data" / "tokenizer")
    model = make_model("gpt2", vocab_size=len(tokenizer), n_positions=1024)
    for name in MODELS:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name in CHAT_MODELS:
        make_model("qwen2", vocab_size=300, max_position_embeddings=1024).save_pretrained(folder / name)
        make_chat_tokenizer().save_pretrained(folder / name)
    write_talks(folder / "my_talks")
    write_dolly(folder, folder / "my_data")
    write_sources(folder)
    for name in ("self_inst.jsonl", "sni.jsonl"):
        shutil.copy(folder / "my_data" / "test.jsonl", folder / name)
    texts = [json.dumps({"text": text}) for text in generate_corpus(40)]
    for name in ("corpus.jsonl", "openwebtext.jsonl"):
        (folder / name).write_text("\n".join(texts), encoding="utf-8")
    write_scifact(folder / "test.csv.gz")
    write_peerqa(folder / "PEERQA_FOLDER")
    return folder


def write_talks(folder):
    folder.mkdir()
    rows = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello!"))]
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"messages": rows * turns}) for turns in (1, 2, 1, 3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_dolly(folder, data):
    """The paper's splits under this project's names, and under those of the official files."""
    shutil.copytree(data, folder / "dolly", ignore=lambda _, names: [n for n in names if not n.endswith(".jsonl")])
    (folder / "official").mkdir()
    for source, name in {"validation": "dev", "test": "valid"}.items():
        shutil.copy(data / f"{source}.jsonl", folder / "official" / f"{name}.jsonl")
    with gzip.open(folder / "official" / "train.jsonl.gz", "wb") as file:
        file.write((data / "train.jsonl").read_bytes())


def write_sources(folder):
    records = generate_records("train", 12)
    for name, (before, after) in {"notes": ("instruction", "output"), "maths": ("question", "answer")}.items():
        rows = [{before: record.instruction, after: record.responses[0]} for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_scifact(file):
    rows = [(record.instruction, record.responses[0]) for record in generate_records("test", 6)]
    lines = ["query,text,rationale"]
    for query, text in rows:
        text = text.replace('"', "").replace("\n", " ")
        flags = json.dumps([1] * len(text.split(" ")))
        lines.append(f'"{query}","{text}","{flags}"')
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")


def write_peerqa(folder):
    folder.mkdir()
    papers, questions = [], []
    for number in range(3):
        for place in range(4):
            text = f"Sentence {place} of paper {number}."
            papers.append({"paper_id": f"p{number}", "idx": place, "pidx": place // 2, "content": text})
        questions.append(
            {"paper_id": f"p{number}", "question": "Which?", "answer_evidence_mapped": [{"idx": [number]}]}
        )
    for name, rows in (("papers.jsonl", papers), ("qa.jsonl", questions)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def reader(everything, tmp_path, monkeypatch):
    """A copy of it as working directory."""
    folder = tmp_path / "reader"
    shutil.copytree(everything, folder)
    monkeypatch.chdir(folder)
    return folder
