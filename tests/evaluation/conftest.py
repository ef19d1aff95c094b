import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from lightning_minillm.data import InstructionRecord, PlainTemplate
from lightning_minillm.modules import CausalLMModule
from lightning_minillm.rollout import SamplingConfig

VOCAB_SIZE = 37


class Words:
    """A source of random instructions and references over the words of the tiny tokenizer."""

    def __init__(self, count=12, seed=0):
        self.count, self.seed = count, seed

    def load(self):
        generator = torch.Generator().manual_seed(self.seed)

        def words(most):
            count = int(torch.randint(1, most + 1, (), generator=generator))
            return " ".join(f"w{i}" for i in torch.randint(1, VOCAB_SIZE, (count,), generator=generator).tolist())

        return [InstructionRecord(words(6), "", (words(5),)) for _ in range(self.count)]


class StubJudge(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint on this machine that says what a function of the question says.

    What it says before that, one a request: ``failures``, each a status, ``(status, headers)``, or ``None`` for none.
    ``check_status`` is what it says to who only wants to know whether it is there.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.answer = lambda question: "A: 5, B: 5"
        self.failures, self.bodies, self.headers = [], [], []
        self.checks, self.check_status = 0, 200
        self.raw, self.usage, self.lock = None, {"total_tokens": 10}, threading.Lock()

    def handle_error(self, request, client_address):
        """Say nothing of one who did not wait."""

    @property
    def questions(self):
        return [body["messages"][0]["content"] for body in self.bodies]


class StubHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.checks += 1
        self.reply(self.server.check_status, b'{"data": []}')

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append({"path": self.path, **body})
            server.headers.append(dict(self.headers))
            failure = server.failures.pop(0) if server.failures else None
        if failure is not None:
            self.reply(failure, b'{"error": {"message": "as the test wants it"}}')
            return
        message = {"role": "assistant", "content": server.answer(body["messages"][0]["content"])}
        content = {"choices": [{"message": message}], "usage": server.usage}
        self.reply(200, json.dumps(content).encode() if server.raw is None else server.raw)

    def reply(self, status, content):
        status, headers = status if isinstance(status, tuple) else (status, {})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def stub_judge(monkeypatch):
    """A running :class:`StubJudge`, reached without any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with StubJudge() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def add_noise(model, scale, seed=0):
    """Damage a model: every weight is moved at random, by ``scale`` of its matrix' deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += scale * parameter.std(unbiased=False) * noise
    return model


def run_steps(evaluation, module, batches=None):
    """The records of all items, sorted, as the runner hands them to ``findings``."""
    batches = evaluation.batches() if batches is None else batches
    with torch.no_grad():
        records = [record for items in batches for record in evaluation.step(module, items)]
    return sorted(records, key=lambda record: record["item"])


@pytest.fixture(scope="session")
def words():
    """``words(count=12, seed=0)``: a source of random records."""
    return Words


@pytest.fixture(scope="session")
def damage():
    """``damage(model, scale, seed=0)``."""
    return add_noise


@pytest.fixture(scope="session")
def run_all():
    """``run_all(evaluation, module, batches=None)``."""
    return run_steps


@pytest.fixture(scope="session")
def make_pair(tokenizer):
    """``make_pair(student, teacher=None)``: a module ready to be measured."""

    def make(student, teacher=None):
        module = CausalLMModule(student, tokenizer, teacher=teacher)
        module.configure_model()
        return module

    return make


@pytest.fixture(scope="session")
def make_evaluation(tokenizer):
    """``make_evaluation(kind, sources, max_new_tokens=10, ...)``: a prepared comparison with a teacher."""

    def make(kind, sources, *, max_new_tokens=10, temperature=1.0, template=None, **options):
        sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, teacher_mix_alpha=0.0)
        evaluation = kind(
            sources, template or PlainTemplate(), sampling, max_length=32, max_prompt_length=16, **options
        )
        evaluation.prepare(tokenizer)
        return evaluation

    return make
