"""A program for any version of the SDK: uses the mock as a new user would, and says what it saw. Runs outside our venv.

`python sdk_client.py URL`; the last line of its output is JSON.
"""

import json
import sys
import time
import uuid
from typing import Any

import anthropic

MODEL = "claude-sonnet-4-5"
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "name": "add",
    "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}

client: Any = anthropic.Anthropic(api_key="key", base_url=sys.argv[1])
seen: dict[str, Any] = {"version": anthropic.__version__}

message = client.messages.create(model=MODEL, max_tokens=30, messages=HELLO)
seen["create"] = [message.content[0].type, message.stop_reason, message.usage.output_tokens]

with client.messages.stream(model=MODEL, max_tokens=30, messages=HELLO) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
seen["stream"] = text == message.content[0].text and final.usage.output_tokens == 30

called = client.messages.create(
    model=MODEL, max_tokens=99, messages=HELLO, tools=[TOOL], tool_choice={"type": "any"}
)
seen["tool"] = [called.stop_reason, called.content[0].input]

thought = client.messages.create(
    model=MODEL,
    max_tokens=2000,
    messages=HELLO,
    thinking={"type": "enabled", "budget_tokens": 1024},
)
seen["thinking"] = [block.type for block in thought.content]

seen["count"] = client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
seen["models"] = MODEL in [model.id for model in client.models.list(limit=5)]

batch = client.messages.batches.create(
    requests=[
        {"custom_id": str(i), "params": {"model": MODEL, "max_tokens": 5, "messages": HELLO}}
        for i in range(3)
    ]
)
give_up_s = time.monotonic() + 30
while client.messages.batches.retrieve(batch.id).processing_status != "ended":
    if time.monotonic() > give_up_s:
        sys.exit("the batch does not end")
results = client.messages.batches.results(batch.id)
seen["batch"] = sorted((line.custom_id, line.result.type) for line in results)

errors: dict[str, int] = {}
for kind in ("400", "401", "403", "404", "413", "429", "500", "503", "529"):
    try:
        client.with_options(max_retries=0).messages.create(
            model=MODEL,
            max_tokens=5,
            messages=HELLO,
            extra_headers={"x-mock-fault": f"kind={kind}"},
        )
    except anthropic.APIStatusError as error:
        errors[kind] = error.status_code
seen["errors"] = errors

order = f"kind=529;times=2;retry_after=0.2;key={uuid.uuid4().hex}"
begun_s = time.monotonic()
client.messages.create(
    model=MODEL, max_tokens=5, messages=HELLO, extra_headers={"x-mock-fault": order}
)
seen["retried_after_s"] = round(time.monotonic() - begun_s, 2)

try:
    with client.messages.stream(
        model=MODEL,
        max_tokens=30,
        messages=HELLO,
        extra_headers={"x-mock-fault": "kind=drop_stream"},
    ) as stream:
        stream.get_final_message()
    seen["broken"] = "unnoticed"
except Exception as error:  # noqa: BLE001 - each line raises its own HTTP library's error
    seen["broken"] = type(error).__name__

sys.stdout.write(json.dumps(seen) + "\n")
