// The keys, which `?` shows. They do nothing while something is typed or a dialog is open.

const KEYS = {
  '/': () => byId(currentView?.search)?.select(),
  n: () => goTo('#/submit'),
  t: () => goTo('#/'),
  m: () => goTo('#/machines'),
  s: () => goTo('#/schedules'),
  o: () => goTo('#/overview'),
  j: () => moveFocus(1),
  k: () => moveFocus(-1),
  '?': showHelp,
};

function goTo(hash) {
  location.hash = hash;
}

function showHelp() {
  setVisible(byId('token-forget'), token);
  byId('help-dialog').showModal();
}

// To the next or previous row, tile or group of the open view.
function moveFocus(step) {
  const all = document.querySelectorAll('main > section:not([hidden]) :is(a.row, a.tile, a.open, summary)');
  const rows = [...all].filter(el => el.offsetParent);
  const here = rows.indexOf(document.activeElement);
  const start = step > 0 ? 0 : -1;
  rows.at(here < 0 ? start : Math.min(here + step, rows.length - 1))?.focus();
}

// Clears a search field, leaves any other field, or goes one view up.
function onEscape(input) {
  if (!input) goTo(currentView?.back?.() ?? '#/');
  else if (input.type === 'search' && input.value) {
    input.value = '';
    input.dispatchEvent(new Event('input'));
  } else input.blur();
}

onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector('dialog[open]')) return;
  const {target, key} = event;
  const input = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) ? target : null;
  if (key === 'Escape') onEscape(input);
  else if (!input && Object.hasOwn(KEYS, key)) {
    event.preventDefault();
    KEYS[key]();
  }
};

byId('help-button').onclick = showHelp;
