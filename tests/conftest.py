"""Tiny models of six families with spread-out random weights, a tiny tokenizer, and where the recorded numbers lie."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lightning_minillm.modules import PretrainingOptions, TrainingOptions, ValidationOptions
from lightning_minillm.rollout import AdvantageEstimator, RolloutOptions, TeacherOptions
from lightning_minillm.types import PromptBatch

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 37
EOS = 0

# Wide initialisation: at the stock 0.02 every next-token distribution is almost uniform and errors hide.
FAMILIES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64, "initializer_range": 0.3},
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "init_std": 0.3,
    },
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    "mistral": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "sliding_window": 5,
        "initializer_range": 0.3,
    },
    "qwen2": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    "qwen3": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
}


def build_model(family, seed=0, vocab_size=VOCAB_SIZE, **config):
    """A tiny causal LM in eval mode; ``config`` overrides the family's stock one."""
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": None}
    fields = {**FAMILIES.get(family, {}), **ids, "vocab_size": vocab_size, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()


def build_prompts(lengths=(5, 3, 7, 1), width=None, vocab_size=VOCAB_SIZE, seed=0, first_index=0, pad=EOS):
    """Left-padded prompts of the given lengths, without eos in them."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    rows = [torch.randint(1, vocab_size, (length,), generator=generator) for length in lengths]
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = tokens
        mask[row, width - len(tokens) :] = True
    return PromptBatch(ids, mask, torch.arange(first_index, first_index + len(rows)))


def build_word_tokenizer(pad_token=None, words=VOCAB_SIZE):
    """Words ``w1 w2 ...`` with id = number; eos is id 0, and pads unless a pad token is named (then the last id)."""
    vocabulary = {"<eos>": EOS, **{f"w{i}": i for i in range(1, words)}}
    special = {"eos_token": "<eos>", "bos_token": "<eos>", "pad_token": "<eos>"}
    if pad_token is not None:
        vocabulary[pad_token] = words
        special["pad_token"] = pad_token
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w1"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)


def build_special_tokenizer(eos="<eos>", added=(), begin=None, words=30, chat=None, gap=0, **special):
    """Words ``w3 w4 ...`` with id = number; ``<eos>`` 0, ``<|im_start|>`` 1, ``<|im_end|>`` 2.

    ``gap``: that many ids without a token, and then the token ``<last>``; ``added``: more tokens after all others.
    """
    vocabulary = {"<eos>": 0, "<|im_start|>": 1, "<|im_end|>": 2, **{f"w{i}": i for i in range(3, words)}}
    if gap:
        vocabulary["<last>"] = words + gap
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w3"))
    backend.pre_tokenizer = Whitespace()
    if begin is not None:
        backend.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<eos>", **special)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.add_tokens(list(added))
    made.chat_template = chat
    return made


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_chat_tokenizer(chat_template=CHATML):
    """Bytes, one merge (two line breaks) and ChatML's special tokens; as a base model's, its eos ends no turn."""
    bytes_and_merge = [*sorted(ByteLevel.alphabet()), "\u010a\u010a"]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(bytes_and_merge)}, [("\u010a", "\u010a")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    special = {"eos_token": "<eos>", "pad_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = chat_template
    return tokenizer


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def make_model():
    """``make_model(family, seed=0, vocab_size=37, **config)``."""
    return build_model


@pytest.fixture(scope="session")
def make_prompts():
    """``make_prompts(lengths, width=None, ...)``."""
    return build_prompts


@pytest.fixture(scope="session")
def make_chat_tokenizer():
    """``make_chat_tokenizer(chat_template=CHATML)``: ChatML, or a template of the test's."""
    return build_chat_tokenizer


@pytest.fixture(scope="session")
def make_tokenizer():
    """``make_tokenizer(pad_token=None, words=37)``."""
    return build_word_tokenizer


@pytest.fixture(scope="session")
def make_special_tokenizer():
    """``make_special_tokenizer(eos="<eos>", added=(), begin=None, words=30, chat=None, ...)``."""
    return build_special_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """A word tokenizer of 37 ids whose pad is its eos."""
    return build_word_tokenizer()


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    """Each family that the package promises to work with."""
    return request.param


@pytest.fixture(scope="session")
def golden_folder():
    """Folder of the numbers recorded with the official code; tests that need it skip without it."""
    folder = Path(os.environ.get("MINILLM_TEST_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not list(folder.glob("*.safetensors")):
        pytest.skip(f"no recorded numbers at '{folder}': set MINILLM_TEST_GOLDEN to a folder of .safetensors files")
    return folder


@pytest.fixture(scope="session")
def data_folder():
    """Folder of real public data sets and models; tests that need it skip without it."""
    folder = Path(os.environ.get("MINILLM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at '{folder}': set MINILLM_TEST_DATA to a folder that holds it")
    return folder


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


_GROUPS = {
    "training": "optimizer scheduler dropout gradient_checkpointing activation_offload compile_backend",
    "validation": "validation_sampling validation_seed",
    "rollouts": "sampling num_rollouts ppo_epochs rollout_batch_size source loss_temperature recompute_logprobs seed",
    "teacher_use": "reading cache offload",
    "pretraining": "pretraining_loss pretraining_coef",
    "advantages": "gamma reward_scaling reward_clip return_start length_normalize whiten",
}
_RENAMED = {"rollout_batch_size": "batch_size"}


def group_options(options, defaults=None):
    """Sort flat options into the dataclasses that modules take; what is no option stays as it is."""
    kinds = {
        "training": TrainingOptions,
        "validation": ValidationOptions,
        "rollouts": RolloutOptions,
        "teacher_use": TeacherOptions,
        "pretraining": PretrainingOptions,
        "advantages": AdvantageEstimator,
    }
    flat, grouped = {**(defaults or {}), **options}, {}
    for group, words in _GROUPS.items():
        given = {name: flat.pop(name) for name in words.split() if name in flat}
        if given:
            named = {_RENAMED.get(name, name.removeprefix(f"{group}_")): value for name, value in given.items()}
            grouped[group] = kinds[group](**named)
    return {**flat, **grouped}


@pytest.fixture(scope="session")
def options_of():
    """``options_of(options, defaults=None)``: see :func:`group_options`."""
    return group_options
