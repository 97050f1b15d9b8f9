"""The demo model's tokenizer: one token per byte, and a chat template that knows tools.

Owns the vocabulary and how a conversation becomes text. Any UTF-8 text survives a round trip. The
template writes turns as ChatML and tools as Hermes does, which vLLM's ``hermes`` tool parser reads.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, TURN_START, TURN_END)

# GPT-2's stand-ins, one printable character per byte; those of printable ASCII are themselves.
BYTE_TOKENS = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))
TOKEN_IDS = {token: index for index, token in enumerate(BYTE_TOKENS + SPECIAL_TOKENS)}

# Indented for the reader: the renderer drops a line's leading blanks and the newline after a tag.
CHAT_TEMPLATE = """\
{%- macro turn(role, text) %}
    {{- "<|im_start|>" + role + "\\n" + text + "<|im_end|>\\n" }}
{%- endmacro %}

{%- set system = namespace(text="") %}
{%- if messages and messages[0].role == "system" %}
    {%- set system.text = messages[0].content or "" %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if tools %}
    {%- set signatures = namespace(text="") %}
    {%- for tool in tools %}
        {%- set signatures.text = signatures.text + (tool | tojson) + "\\n" %}
    {%- endfor %}
    {%- set system.text = (system.text + "\\n\\n" if system.text else "")
        + "You may call these functions:\\n<tools>\\n" + signatures.text + "</tools>\\n"
        + "To call one, answer:\\n<tool_call>\\n"
        + '{"name": "its name", "arguments": {"argument": "value"}}' + "\\n</tool_call>" %}
{%- endif %}
{%- if system.text %}
    {{- turn("system", system.text) }}
{%- endif %}

{%- for message in messages %}
    {%- set answer = namespace(text=message.content or "") %}
    {%- for call in message.tool_calls or [] %}
        {%- set answer.text = answer.text + ("\\n" if answer.text else "")
            + '<tool_call>\\n{"name": ' + (call.function.name | tojson)
            + ', "arguments": ' + (call.function.arguments | tojson) + "}\\n</tool_call>" %}
    {%- endfor %}
    {%- if message.role == "tool" %}
        {%- set answer.text = "<tool_response>\\n" + answer.text + "\\n</tool_response>" %}
    {%- endif %}
    {{- turn(message.role, answer.text) }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE without a single merge: text to bytes to tokens, and back."""
    vocabulary = {token: TOKEN_IDS[token] for token in BYTE_TOKENS}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def tokenizer_config(max_tokens: int) -> dict[str, Any]:
    """What ``transformers`` wants to know besides the tokenizer itself."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": TURN_END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
