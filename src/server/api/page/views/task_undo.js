// One task: what became of its undos, and the buttons that settle those that are failed or owed.

// In the order in which they are shown.
const UNDO_STATES = ['done', 'forgiven', 'notNeeded', 'failed', 'owed', 'running', 'armed'];
const UNDO_REASONS = {deadman: "dead man's switch", agentLost: 'agent lost', byHand: 'by hand'};
// An undo that was asked for may begin later: the task is polled for so long, though it has ended.
const UNDO_WATCHED_MS = 2 * MINUTE;

let undoWatchedUntil = 0;

// Narrows the machines down, see `renderChips`.
const undoFilter = {onlyState: '', render: () => taskView.render()};

function isNotUndone({undo}) {
  return ['failed', 'owed'].includes(undo?.state);
}

function undoName(undo) {
  return (isNotUndone({undo}) ? 'NOT UNDONE: ' : 'Undo ') + stateName(undo.state);
}

function renderUndos({undos}) {
  const present = UNDO_STATES.filter(state => undos?.[state] || undoFilter.onlyState === state);
  const left = notUndoneCount({undos});
  setVisible(byId('task-undos'), present.length);
  renderChips(byId('undo-chips'), present, undoFilter, state => taskView.task.undos[state]);
  setText(byId('undos-left'), left ? left + ' NOT UNDONE' : '');
  for (const id of ['undos-again', 'undos-forgive']) setVisible(byId(id), left);
}

// The undo of the execution that is shown.
function renderUndo(execution) {
  const {undo} = execution;
  setVisible(byId('execution-undo'), undo);
  if (!undo) return;
  setClass(byId('undo-state'), `state s-${undo.state} ${isNotUndone(execution) ? 'error' : ''}`);
  setText(byId('undo-state').lastElementChild, undoName(undo));
  for (const id of ['undo-again', 'undo-forgive']) setVisible(byId(id), isNotUndone(execution));
  setVisible(byId('undo-due'), undo.dueAt && parseTime(undo.dueAt) < serverNow());
  const due = formatTime(undo.dueAt);
  setText(byId('undo-due'), `Should have undone itself by ${due}, not confirmed.`);
  renderFacts(byId('undo-facts'), [
    ['Because', UNDO_REASONS[undo.reason] ?? stateName(undo.reason)],
    ['By', undo.by !== 'server' && undo.by],
    ['Tries', undo.tries],
    ['Exit code', undo.exitCode],
    ['Check exit code', undo.checkExitCode],
    ['Armed', formatTime(undo.armedAt)],
    ['Began', formatTime(undo.beganAt)],
    ['Ended', formatTime(undo.endedAt)],
    ['Message', undo.msg],
  ]);
  setVisible(byId('undo-fold'), undo.output);
  setText(byId('undo-output'), safeText(undo.output));
}

async function undoAgain(where) {
  const machines = where ? 'this machine' : 'all machines of the task, also where it is done';
  const consequence = `It runs again on ${machines}, at once where its agent is online.`;
  if (!await confirmFirst('Run the undo again?', consequence, 'Undo again')) return;
  undoWatchedUntil = serverNow() + UNDO_WATCHED_MS;
  await changeShownTask('undo' + where);
  refreshStatus();
}

async function forgiveUndo(where, count) {
  const consequence =
    'The effect may still be there: forgive what you have put right by hand. The audit says who did.';
  if (!await confirmFirst(`Forgive ${plural(count, 'undo')}?`, consequence, 'Forgive')) return;
  await changeShownTask('forgive' + where);
  refreshStatus();
}

function pickedMachine() {
  return '?machine=' + encodeURIComponent(taskView.current().instance);
}

onClick(byId('undos-again'), () => undoAgain(''));
onClick(byId('undos-forgive'), () => forgiveUndo('', notUndoneCount(taskView.task)));
onClick(byId('undo-again'), () => undoAgain(pickedMachine()));
onClick(byId('undo-forgive'), () => forgiveUndo(pickedMachine(), 1));
