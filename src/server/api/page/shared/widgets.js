// What several views show: states, filters, facts, messages, commands to copy.

// The states of executions, tasks and machines, in the order in which they are shown.
const ENDED_STATES =
  ['succeeded', 'failed', 'timedOut', 'lost', 'expired', 'canceled', 'skipped'];
const STATES = [...ENDED_STATES, 'running', 'delivered', 'queued', 'held'];
const UNENDED_STATES = ['scheduled', 'blocked', 'waiting', 'running'];
const TASK_STATES =
  [...UNENDED_STATES, 'succeeded', 'partial', 'failed', 'canceled', 'expired', 'skipped'];
const MACHINE_STATES = ['online', 'draining', 'offline'];

function stateName(state) {
  const names =
    {timedOut: 'timed out', notNeeded: 'not needed', notRecovered: 'not recovered'};
  return names[state] ?? state;
}

// A coloured dot and the name of a state.
function makeBadge() {
  return element('span', 'state', element('i', 'dot'), element('span'));
}

function setBadge(badge, state) {
  setClass(badge, 'state s-' + state);
  setText(badge.lastElementChild, stateName(state));
}

// Buttons that filter by state. `view.onlyState` is the chosen state, '' for all of them.
function renderChips(box, states, view, countOf) {
  renderList(box, states, state => state, state => {
    const count = element('b');
    const onclick = () => {
      view.onlyState = view.onlyState === state ? '' : state;
      view.render();
    };
    const dot = element('i', 'dot');
    const el = element('button', {class: 'chip s-' + state, onclick}, dot, stateName(state), count);
    return {
      el,
      update() {
        setText(count, String(countOf(state)));
        el.setAttribute('aria-pressed', view.onlyState === state);
      },
    };
  });
}

// A list of [name, value, look]; those without a value are left out. The look is 'mono' for code.
function renderFacts(box, facts) {
  const present = facts.filter(([, value]) => value || value === 0);
  renderList(box, present, ([name]) => name, ([name, , look = 'num']) => {
    const shown = element('dd', look);
    return {
      el: element('div', {}, element('dt', {}, name), shown),
      update([, value]) {
        setText(shown, safeLine(value));
      },
    };
  });
}

const TOAST_MS = 4000;
let toastTimer;

// A message that goes away by itself.
function showToast(text) {
  const toast = byId('toast');
  setText(toast, text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => setText(toast, ''), TOAST_MS);
}

async function copyToClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers allow the above only on https and on localhost. The old way works everywhere.
    const area = element('textarea', 'visually-hidden');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  showToast('Copied');
}

function makeCopyable(command) {
  const button = element('button', {onclick: () => copyToClipboard(command)}, 'Copy');
  return element('div', 'copy', element('code', {}, command), button);
}

// Asks before something that cannot be undone; resolves to whether it was agreed to. A `choice`
// {text, checked} is a box to tick, `confirm-choice`.
function confirmFirst(title, text, yes, choice) {
  setText(byId('confirm-title'), title);
  setText(byId('confirm-text'), text);
  setText(byId('confirm-yes'), yes);
  setVisible(byId('confirm-option'), choice);
  setText(byId('confirm-choice-text'), choice?.text ?? '');
  byId('confirm-choice').checked = choice?.checked;
  return isAgreed(byId('confirm-dialog'));
}

// Opens a dialog; resolves to whether it was left by its button "yes".
function isAgreed(dialog) {
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise(resolve => {
    dialog.onclose = () => resolve(dialog.returnValue === 'yes');
  });
}

// Makes a button run `action`, one run at a time, and shows its error.
function onClick(button, action) {
  button.onclick = async () => {
    button.disabled = true;
    try {
      await action();
    } catch (error) {
      showToast(safeLine(error.message));
    }
    button.disabled = false;
  };
}

// How long a search field waits after the last key, in milliseconds.
const TYPING_PAUSE_MS = 200;

// A function that runs `action` once typing has paused.
function afterTyping(action) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, TYPING_PAUSE_MS);
  };
}
