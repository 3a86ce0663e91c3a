// Draws every picture of the page. Expressions are interpreted (ast), so the
// content security policy need not allow eval.
(function () {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = { renderer: "svg", ast: true, actions: false, tooltip: { theme: "page" } };
  const drawings = Object.entries(specs).map(([name, spec]) => {
    const frame = document.getElementById("picture-" + name);
    return vegaEmbed(frame, spec, options).catch((error) => {
      frame.textContent = "This picture could not be drawn (" + error.message + "). The table below has its numbers.";
      throw error;
    });
  });
  Promise.allSettled(drawings).then((results) => {
    const failed = results.filter((result) => result.status === "rejected").length;
    document.documentElement.dataset.pictures = failed ? failed + " failed" : "drawn";
  });
  // On paper nothing can be opened: show explanations while printing, then restore.
  const closed = () => document.querySelectorAll("details.explanation:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...closed()];
    opened.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));
})();
