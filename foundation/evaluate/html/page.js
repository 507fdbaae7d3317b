// Tabs, the switch between light and dark, and printing. Without this script the page shows everything in a row.
"use strict";
(function () {
  const root = document.documentElement;
  const containers = Array.from(document.querySelectorAll(".tabs"));

  function panelsOf(container) {
    return Array.from(container.children).filter((child) => child.classList.contains("tab"));
  }

  function show(panel) {
    for (const other of panelsOf(panel.parentElement)) {
      const chosen = other === panel;
      const tab = document.getElementById("tab-" + other.id);
      other.hidden = !chosen;
      if (tab) {
        tab.setAttribute("aria-selected", String(chosen));
        tab.tabIndex = chosen ? 0 : -1;
      }
    }
  }

  function showWithParents(element) {
    for (let e = element; e; e = e.parentElement) if (e.classList.contains("tab")) show(e);
  }

  function choose(panel, focus) {
    show(panel);
    history.replaceState(null, "", "#" + panel.id);
    if (focus) document.getElementById("tab-" + panel.id).focus();
  }

  function onKey(event, panels) {
    const now = panels.findIndex((panel) => !panel.hidden);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: panels.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    choose(panels[(next + panels.length) % panels.length], true);
  }

  for (const container of containers) {
    const panels = panelsOf(container);
    if (panels.length < 2) continue;
    const list = document.createElement("div");
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", container.dataset.label);
    for (const panel of panels) {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.id = "tab-" + panel.id;
      tab.textContent = panel.dataset.title;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panel.id);
      tab.addEventListener("click", () => choose(panel, false));
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      list.append(tab);
    }
    list.addEventListener("keydown", (event) => onKey(event, panels));
    container.prepend(list);
    show(panels[0]);
  }
  const contents = document.querySelector("nav.contents");
  if (contents) contents.hidden = true;

  function follow() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    showWithParents(target);
    target.scrollIntoView(); // with a margin in the style, so that the tabs above stay in sight
  }
  addEventListener("hashchange", follow);
  follow();

  // A theme that is chosen stays for this page only: files opened from a disk may not store anything.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const container of containers) for (const panel of panelsOf(container)) panel.hidden = false;
  });
  addEventListener("afterprint", () => {
    for (const container of containers) {
      const panels = panelsOf(container);
      const tab = container.querySelector(":scope > [role=tablist] > [aria-selected=true]");
      if (tab) show(panels.find((panel) => "tab-" + panel.id === tab.id));
    }
  });
})();
