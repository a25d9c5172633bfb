// One run's panel at a time where there are several; without scripts all of them are shown.
document.documentElement.classList.add("js");
for (const group of document.querySelectorAll("[data-tabs]")) {
  const tabs = [...group.querySelectorAll("[role=tab]")];
  const select = (chosen, focus) => {
    for (const tab of tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) chosen.focus();
  };
  group.hidden = false;
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => select(tab, false));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) select(tabs[(place + step + tabs.length) % tabs.length], true);
    });
  });
  select(tabs[0], false);
}

// Paper has no clicks: what is folded is opened for it.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = false;
});
