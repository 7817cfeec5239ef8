// The first line of every view: the undos that are failed or owed, the halt, and what is suspended.

// It is fetched with the view, at most this often, and alone once the view is not polled any more.
const STATUS_PAUSE_MS = 2 * SECOND;
const IDLE_STATUS_PAUSE_MS = 15 * SECOND;

// So many suspensions are named.
const MOST_SUSPENSIONS = 3;

let statusFetchedAt = -Infinity;

async function pollStatus(signal) {
  if (performance.now() - statusFetchedAt < STATUS_PAUSE_MS) return;
  const [{data}, suspended] = await Promise.all([get('status', signal), get('suspend', signal)]);
  statusFetchedAt = performance.now();
  renderStatus(data, suspended.data);
}

function renderStatus({halt, undosOpen}, suspensions) {
  setVisible(byId('status'), halt || undosOpen || suspensions.length);
  setText(byId('status-suspended'), joinFirst(suspensions.map(suspensionText), MOST_SUSPENSIONS));
  setText(byId('status-debts'), undosOpen ? formatCount(undosOpen) + ' not undone' : '');
  setText(byId('status-halt'), halt ? haltText(halt) : '');
  setVisible(byId('status-lift'), halt);
  // A halt of some tasks can still become one of all.
  setVisible(byId('halt-button'), !halt?.all);
}

function suspensionText({machinePattern, reason, until}) {
  const end = until ? ' until ' + formatTime(until) : '';
  const why = reason ? ': ' + reason : '';
  return safeLine(`${machinePattern} is suspended${end}${why}`);
}

function haltText({since, reason, all}) {
  const what = all ? 'All tasks' : 'Tasks with an undo';
  return `${what} are halted since ${formatTime(since)}: ${safeLine(reason)}`;
}

function refreshStatus() {
  statusFetchedAt = -Infinity;
  startPolling();
}

onClick(byId('halt-button'), async () => {
  const reason = byId('halt-reason');
  reason.value = '';
  byId('halt-all').checked = false;
  if (!await isAgreed(byId('halt-dialog'))) return;
  const all = byId('halt-all').checked ? 1 : 0;
  const {data} = await post('halt?all=' + all, {reason: reason.value});
  showToast(`Halted: ${plural(data.canceled, 'task')} canceled`);
  refreshStatus();
});
byId('halt-no').onclick = () => byId('halt-dialog').close();
onClick(byId('status-lift'), async () => {
  const consequence = 'New tasks are accepted again. What was canceled does not start again.';
  if (!await confirmFirst('Lift the halt?', consequence, 'Lift it')) return;
  await remove('halt');
  refreshStatus();
});
