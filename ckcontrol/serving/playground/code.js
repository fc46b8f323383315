// One request as curl and as Python. Knows JSON; knows nothing of the page.

/** JSON in which whatever is not plainly visible is escaped: what is copied is what is seen. */
const json = (value, indent, escape = unit) => JSON.stringify(value, null, indent).replace(
  /[^\x20-\x7e\n\u00a1-\u00ac\u00ae-\u024f\u0370-\u03ff\u0400-\u04ff\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]/gu, escape);
const unit = (c) => Array.from({ length: c.length }, (_, i) => `\\u${c.charCodeAt(i).toString(16).padStart(4, "0")}`).join("");
const long = (c) => (c.length === 1 ? unit(c) : `\\U${c.codePointAt(0).toString(16).padStart(8, "0")}`); // Python's

function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value === null || typeof value !== "object") {
    return new Map([[true, "True"], [false, "False"], [null, "None"]]).get(value) ?? json(value, 0, long);
  }
  return `{${Object.entries(value).map(([name, one]) => `${json(name)}: ${python(one)}`).join(", ")}}`;
}

/** A command for a POSIX shell; `locked`: the server asks for a key, which is never written out. */
export function asCurl(base, body, locked) {
  const data = `'${json(body, 2).replaceAll("'", "'\\''")}'`;
  const key = locked ? ' \\\n  -H "Authorization: Bearer $CKCONTROL_API_KEY"' : "";
  return `curl ${base}/chat/completions${key} \\\n  -H 'Content-Type: application/json' -d ${data}`;
}

/** A program for the openai package, without changes to it. */
export function asPython(base, { ck, ...body }, locked) {
  const fields = Object.entries({ model: "default", ...body }).map(([name, value]) => `    ${name}=${python(value)},\n`).join("");
  const key = locked ? 'os.environ["CKCONTROL_API_KEY"]' : '"none"';
  return `${locked ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url=${json(base)}, api_key=${key})\n` +
    `reply = client.chat.completions.create(\n${fields}    extra_body={"ck": ${python(ck)}},\n)\n` +
    "print(reply.choices[0].message.content)\nprint(reply.ck)";
}
