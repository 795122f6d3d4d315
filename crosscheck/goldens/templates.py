"""Published chat templates rendered by Jinja2 as transformers runs it: what Anemone's templates are compared with.

    python templates.py FOLDER

For every *.jinja in FOLDER/templates (`fixtures/fetch-vocabs` prints such a FOLDER), renders the conversations below, and writes
FOLDER/templates/expected.json: {"cases": [{messages, tools, add_generation_prompt, variables}, ...],
"rendered": {template name: [text, or null where it raises, one for each case]}}. Needs Jinja2 alone. The environment (trimmed blocks,
loop controls, json.dumps without ASCII, raise_exception, strftime_now, the `generation` tag that renders what is in it) is the one that
transformers documents for templates; the clock stands at 2024-07-26 12:34:56 UTC.
"""

import datetime
import json
import pathlib
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CLOCK = datetime.datetime(2024, 7, 26, 12, 34, 56, tzinfo=datetime.timezone.utc)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather: \"now\" or <later>, é & 漢.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where"},
                    "days": {"type": "integer", "enum": [1, 2, 3]},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                },
                "required": ["city"],
            },
        },
    }
]


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def case(messages, tools=None, add_generation_prompt=True, **variables):
    return {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt, "variables": variables}


USER = message("user", "  What is 2 + 2?\n")
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}}
CASES = [
    case([USER]),
    case([message("system", "Be brief."), USER]),
    case([USER, message("assistant", "4"), message("user", "And 3 + 3?")]),
    case([message("system", "Be\nbrief. "), USER, message("assistant", " 4\n"), message("user", "Thanks"), message("assistant", "Bye")], add_generation_prompt=False),
    case([USER, message("assistant", "<think>\nTwo and two.\n</think>\n\n4"), message("user", "Sure?")]),
    case([USER], enable_thinking=False),
    case([message("user", "Weather in Oslo?")], TOOLS),
    case([message("system", "Use tools."), message("user", "Weather in Oslo?"), message("assistant", "", tool_calls=[CALL]), message("tool", "{\"temperature\": 3.5}", name="get_weather", tool_call_id="call12345")], TOOLS),
    case([message("user", "a"), message("user", "b")]),
    case([message("assistant", "first")]),
]


class Generation(Extension):
    """Marks what the assistant said; renders it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1], "templates")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=CLOCK.strftime)
    rendered, raised = {}, 0
    for path in sorted(folder.glob("*.jinja")):
        template = environment.from_string(path.read_text(encoding="utf-8"))
        texts = []
        for c in CASES:
            variables = {key: value for key, value in c.items() if key != "variables"} | c["variables"]
            try:
                texts.append(template.render(bos_token="<s>", eos_token="</s>", **variables))
            except Exception:
                texts.append(None)
                raised += 1
        rendered[path.stem] = texts
    if not rendered:
        sys.exit(f"{folder}: no templates")
    expected = folder / "expected.json"
    expected.write_text(json.dumps({"cases": CASES, "rendered": rendered}, ensure_ascii=False), encoding="utf-8")
    print(f"{expected}: {len(rendered)} templates, {len(CASES)} conversations each, {raised} refused")


if __name__ == "__main__":
    main()
