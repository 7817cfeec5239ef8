// The form for a new task. Its fields about machines are in submit_targets.js, the preview of them in
// submit_preview.js, its undo in submit_undo.js, its files in submit_files.js, what it waits for in
// submit_workflow.js, what makes a schedule of it in submit_schedule.js, what is taken over from another task
// in submit_rest.js.

const form = byId('submit-form');

// The form's fields that are sent as they are, by where they belong in a task.
const TASK_FIELDS = ['name', 'ttl', 'startAt', 'delay'];
const DETAIL_FIELDS = ['timeout', 'killGrace', 'workspace', 'stdin'];
const DURATION_FIELDS = ['ttl', 'delay', 'timeout', 'killGrace'];

const submitView = {
  id: 'submit',
  title: 'New task',

  // #/submit?pattern=PATTERN and #/submit?instances=LIST fill in the machines, #/submit?from=TASK
  // everything, #/submit?schedule=NAME a schedule to be changed; without NAME a new one.
  async open(_, query) {
    setText(byId('submit-error'), '');
    const schedule = query.get('schedule');
    field(schedule === '' ? 'scheduleId' : 'command').focus();
    if (editedSchedule) forgetSchedule();
    if (query.has('pattern') || query.has('instances')) {
      for (const name of ['pattern', 'instances']) field(name).value = query.get(name) ?? '';
    }
    try {
      if (query.get('from')) await fillFromTask(query.get('from'));
      if (schedule) await fillFromSchedule(schedule);
    } catch (error) {
      setText(byId('submit-error'), safeLine(error.message));
    }
    openFolds();
    if (schedule === '') {
      byId('submit-schedule').open = true;
      field('scheduleId').focus();
    }
    renderCommandHint();
    renderSubmitButton();
    renderPreview();
    previewFirings();
  },

  async poll(signal) {
    await fetchMachines(signal);
    await renderPreview({again: true});
    return 5000;
  },
};

function field(name) {
  return form.elements[name];
}

async function fillFromTask(id) {
  fillForm((await get('task/' + encodeURIComponent(id))).data);
}

async function fillFromSchedule(id) {
  const schedule = (await get('schedule/' + encodeURIComponent(id))).data;
  fillForm(schedule.task, schedule);
  editedSchedule = id;
}

function fillForm(task, schedule) {
  const {detail = {}} = task;
  const values = {
    ...task,
    ...detail,
    command: detail.command ?? detail.script ?? detail.argv?.join('\n'),
    ...targetValues(task),
    ...workflowValues(task),
    ...fileValues(task),
    ...undoValues(detail.undo),
    retry: task.retry?.max,
    env: pairsText(detail.env),
    ...scheduleValues(schedule),
  };
  for (const el of form.elements) {
    if (el.name && !/radio|checkbox/.test(el.type)) el.value = values[el.name] ?? '';
    // The first choice stands for the default, also where that is written out.
    if (el.selectedIndex < 0) el.selectedIndex = 0;
  }
  field('mode').value = task.mode ?? 'all';
  field('argv').checked = detail.argv;
  field('undoArgv').checked = detail.undo?.argv;
  field('checkArgv').checked = detail.undo?.checkArgv;
  field('lateJoin').checked = task.lateJoin;
  field('script').checked = detail.script !== undefined;
  field('replaceRunning').checked = task.replaceRunning;
  copyRest(task);
  copyFiles(task);
}

// Nothing that is filled in is hidden.
function openFolds() {
  if (formFiles.length) byId('submit-files').open = true;
  for (const fold of form.querySelectorAll('details')) {
    const fields = [...fold.querySelectorAll('input, select, textarea')];
    fold.open ||= fields.some(el => el.type === 'checkbox' ? el.checked : el.value);
  }
}

// The task that the form describes, as the API wants it. Throws if a field cannot be read.
function readForm() {
  const detail = {};
  const task = {...readTargets(), ...readWorkflow(), ...readFiles(), detail};
  copyFields(TASK_FIELDS, task);
  copyFields(DETAIL_FIELDS, detail);
  const command = field('command').value;
  if (field('argv').checked) detail.argv = command.trimEnd().split('\n');
  else if (field('script').checked) detail.script = command;
  else detail.command = command;
  detail.undo = readUndo();
  addRest(task);
  detail.env = readPairs('env', 'Environment: expected NAME=value');
  // It only lays down files.
  const isPush = task.files && !command.trim() && Object.values(detail).filter(Boolean).length === 0;
  if (isPush) delete task.detail;
  return task;
}

function copyFields(names, target) {
  for (const name of names) {
    const {value} = field(name);
    if (value) target[name] = DURATION_FIELDS.includes(name) ? readDuration(name) : value;
  }
}

// A plain number is sent as one, in seconds; the server reads texts such as "5m".
function readDuration(name) {
  const text = readText(name);
  return /^-?[\d.]+$/.test(text) ? Number(text) : text;
}

function renderCommandHint() {
  const program = 'A program, then one argument per line.';
  const shell =
    'A shell command, run by bash if the machine has it, else by sh. Ctrl+Enter runs it.';
  setText(byId('command-hint'), field('argv').checked ? program : shell);
}

// The id of the next task, and the task that was sent with it but may not have arrived, as text. If the
// answer is lost and the same task is sent again, it has the same id, so that it runs once.
let draft = {id: newTaskId(), sent: ''};

async function submitForm() {
  const task = readForm();
  if (isSchedule()) {
    await saveSchedule(task);
    return;
  }
  const text = JSON.stringify(task);
  if (draft.sent && draft.sent !== text) draft = {id: newTaskId()};
  draft.sent = text;
  let {id} = draft;
  try {
    // Another one's if it has the same unique key and this one joins it.
    id = (await post('task', {...task, id})).data.id;
  } catch (error) {
    const alreadyThere = error.status === 409 && error.data?.id === id;
    // The server refused it, so the id is still free: the preview was made with it.
    if (!alreadyThere && error.status >= 400 && error.status < 500) draft.sent = '';
    if (!alreadyThere) throw error;
  }
  draft = {id: newTaskId(), sent: ''};
  location.hash = taskAddress(id);
}

// The time and five random bytes, in hexadecimal.
function newTaskId() {
  const hex = (number, digits) => number.toString(16).padStart(digits, '0');
  const random = [...crypto.getRandomValues(new Uint8Array(5))];
  return `${hex(Date.now(), 12)}-${random.map(byte => hex(byte, 2)).join('')}`;
}

form.onsubmit = async event => {
  event.preventDefault();
  setText(byId('submit-error'), '');
  byId('submit-button').disabled = true;
  try {
    await submitForm();
  } catch (error) {
    const unreachable =
      'The server cannot be reached. You can safely send the task again: it will run only once.';
    setText(byId('submit-error'), error.status === 0 ? unreachable : safeLine(error.message));
  }
  byId('submit-button').disabled = false;
};
form.onkeydown = event => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
};
const previewAfterTyping = afterTyping(renderPreview);
const previewFiringsAfterTyping = afterTyping(previewFirings);
form.oninput = () => {
  renderCommandHint();
  renderSubmitButton();
  previewAfterTyping();
  previewFiringsAfterTyping();
};
