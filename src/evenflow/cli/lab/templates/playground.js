// Asks for the profile of the present settings and draws it. One request is
// under way at a time; what changed meanwhile is asked for next, so that the
// curve follows a drag as fast as answers come.
(function () {
  "use strict";
  const at = (id) => document.getElementById(id);
  const form = at("knobs"), plot = at("plot"), button = at("measure");
  const options = { renderer: "svg", ast: true, actions: false, tooltip: { theme: "page" } };
  let busy = false, next = null;

  const kind = () => form.querySelector("input[name=net]:checked").value;
  const panel = () => form.querySelector("[data-net='" + kind() + "']");

  function question(seeds) {
    const query = new URLSearchParams({ net: kind() });
    panel().querySelectorAll("input, select").forEach((knob) => query.append(knob.name, knob.value));
    for (let seed = 0; seed < seeds; seed++) query.append("seed", seed);
    return query;
  }

  function cells(kindOfCell, texts) {
    const row = document.createElement("tr");
    texts.forEach((text, column) => {
      const cell = document.createElement(column ? kindOfCell : "th");
      cell.textContent = text;
      cell.scope = column ? (kindOfCell === "th" ? "col" : "") : "row";
      row.append(cell);
    });
    return row;
  }

  async function show(reply) {
    at("headline").textContent = reply.headline;
    at("headline").className = "headline " + reply.tone;
    at("doubts").replaceChildren(...reply.doubts.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    at("status").textContent = reply.measured || "";
    panel().querySelectorAll("[data-knob]").forEach((knob) => {
      const idle = reply.idle.includes(knob.dataset.knob);
      knob.classList.toggle("idle", idle);
      knob.querySelector("input, select").disabled = idle;
    });
    at("numbers").tHead.replaceChildren(cells("th", reply.head));
    at("numbers").tBodies[0].replaceChildren(...reply.rows.map((row) => cells("td", row)));
    await vegaEmbed(plot, reply.spec, options);
    document.documentElement.dataset.levels = JSON.stringify(reply.levels);
    document.documentElement.dataset.picture = reply.measured ? "measured" : "expected";
  }

  async function ask(seeds) {
    if (busy) { next = seeds; return; }
    busy = true;
    try {
      const reply = await fetch("/profile?" + question(seeds));
      const content = await reply.json();
      if (!reply.ok) throw new Error(content.error);
      if (next === null || seeds) await show(content);
    } catch (error) {
      at("headline").className = "headline error";
      at("headline").textContent = error instanceof TypeError ? "The program that answers this page has stopped. Start it again: evenflow lab serve" : error.message;
    }
    busy = false;
    button.setAttribute("aria-disabled", "false");
    if (next !== null) { const now = next; next = null; ask(now); }
  }

  form.addEventListener("input", (event) => {
    if (event.target.name === "net") form.querySelectorAll("[data-net]").forEach((set) => { set.hidden = set !== panel(); });
    const output = event.target.closest(".knob")?.querySelector("output");
    if (output) output.textContent = event.target.value;
    ask(0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    at("status").textContent = "Measuring …";
    ask(Number(button.dataset.seeds));
  });
  ask(0);
})();
