// Tabs by the ARIA pattern: one stop for the Tab key, arrows, Home and End move between them.

const EVENT = "shown";

/** Make the tabs of the page work. The address after # names the open one, so that it can be shared. */
export function startTabs() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];

  const open = (tab) => {
    for (const each of tabs) {
      const isOpen = each === tab;
      each.setAttribute("aria-selected", String(isOpen));
      each.tabIndex = isOpen ? 0 : -1;
      panelOf(each).hidden = !isOpen;
    }
    panelOf(tab).dispatchEvent(new Event(EVENT));
  };

  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => {
      history.replaceState(null, "", `#${name(tab)}`);
      open(tab);
    });
    tab.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = tabs.at(steps[event.key] % tabs.length);
      next.focus();
      next.click();
    });
  }
  const named = () => tabs.find((tab) => `#${name(tab)}` === location.hash);
  addEventListener("hashchange", () => named() && open(named()));
  open(named() ?? tabs[0]);
}

const name = (tab) => tab.id.replace("tab-", "");
const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

/** Call a function whenever a panel is opened. */
export const whenShown = (panel, act) => panel.addEventListener(EVENT, act);
