"use strict";
document.getElementById("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target), answer = document.getElementById("answer");
  const passages = form.get("passages").split("\n").filter((line) => line.trim());
  const reply = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      messages: [{ role: "user", content: form.get("question") }],
      temperature: 0,
      max_tokens: 64,
      ck: { passages, alpha: Number(form.get("alpha")) },
    }),
  });
  const told = await reply.json();
  answer.textContent = reply.ok ? told.choices[0].message.content : told.error.message;
});
