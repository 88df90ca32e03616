(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const bar = document.querySelector("#filter");
  const search = document.querySelector("#search");
  const chapter = document.querySelector("#chapter");
  const shown = document.querySelector("#shown");
  const nothing = document.querySelector("#nothing");
  const verdicts = all("input[name=verdict]");
  const rules = all("details.rule").map((element) => ({ element, text: null }));
  const text = (rule) => (rule.text ??= rule.element.textContent.toLowerCase());

  const apply = () => {
    const wanted = new Set(verdicts.filter((box) => box.checked).map((box) => box.value));
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const rule of rules) {
      const { verdict, chapter: own } = rule.element.dataset;
      const match =
        (wanted.size === 0 || wanted.has(verdict)) &&
        (chapter.value === "*" || chapter.value === own) &&
        words.every((word) => text(rule).includes(word));
      rule.element.hidden = !match;
      count += match;
    }
    for (const section of all("section.chapter")) {
      section.hidden = !section.querySelector("details.rule:not([hidden])");
    }
    shown.textContent = count === rules.length ? `${count} rules` : `${count} of ${rules.length} rules`;
    nothing.hidden = count !== 0;
  };

  const reset = () => {
    verdicts.forEach((box) => { box.checked = false; });
    chapter.value = "*";
    search.value = "";
    apply();
  };

  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.hidden || target.closest("[hidden]")) reset();
    target.open = true;
    target.scrollIntoView();
  };

  bar.hidden = false;
  [...verdicts, chapter].forEach((control) => control.addEventListener("change", apply));
  search.addEventListener("input", apply);
  document.querySelector("#reset").addEventListener("click", reset);
  const setOpen = (value) => rules.forEach(({ element }) => { if (!element.hidden) element.open = value; });
  document.querySelector("#expand").addEventListener("click", () => setOpen(true));
  document.querySelector("#collapse").addEventListener("click", () => setOpen(false));
  all("a.legend").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    reset();
    verdicts.forEach((box) => { box.checked = box.value === link.dataset.verdict; });
    apply();
    bar.scrollIntoView();
  }));
  addEventListener("hashchange", open);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
    if (event.key === "Escape" && document.activeElement === search) { search.value = ""; apply(); }
  });
  apply();
  open();
})();
