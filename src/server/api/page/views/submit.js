// The form for a new task. The preview of its machines is in submit_preview.js.

const form = byId('submit-form');

// The form's fields that are sent as they are, by where they belong in a task.
const TASK_FIELDS = ['name', 'ttl'];
const DETAIL_FIELDS = ['timeout', 'killGrace', 'workspace', 'stdin'];
// Durations: a plain number is sent as one, in seconds; the server reads texts such as "5m".
const DURATION_FIELDS = ['ttl', 'timeout', 'killGrace'];

const submitView = {
  id: 'submit',
  title: 'New task',

  // #/submit?pattern=PATTERN fills in the machines, #/submit?from=TASK everything.
  async open(_, query) {
    setText(byId('submit-error'), '');
    field('command').focus();
    const pattern = query.get('pattern');
    if (pattern) field('pattern').value = pattern;
    const from = query.get('from');
    if (from) {
      try {
        fillForm((await get('task/' + encodeURIComponent(from))).data);
      } catch (error) {
        setText(byId('submit-error'), safeLine(error.message));
      }
    }
    renderCommandHint();
    renderPreview();
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

function fillForm(task) {
  const {detail} = task;
  const environment = Object.entries(detail.env ?? {}).map(entry => entry.join('='));
  const values = {
    ...task,
    ...detail,
    command: detail.command ?? detail.argv?.join('\n'),
    pattern: task.machinePattern,
    retry: task.retry?.max,
    env: environment.join('\n'),
  };
  const names = ['command', 'pattern', 'mode', 'retry', 'env', ...TASK_FIELDS, ...DETAIL_FIELDS];
  for (const name of names) field(name).value = values[name] ?? '';
  field('argv').checked = detail.argv;
  field('lateJoin').checked = task.lateJoin;
  byId('submit-options').open = true;
}

// The task that the form describes, as the API wants it. Throws if the environment cannot be read.
function readForm() {
  const detail = {};
  const task = {machinePattern: field('pattern').value, detail};
  copyFields(TASK_FIELDS, task);
  copyFields(DETAIL_FIELDS, detail);
  const command = field('command').value;
  if (field('argv').checked) detail.argv = command.trimEnd().split('\n');
  else detail.command = command;
  if (field('mode').value === 'any') task.mode = 'any';
  if (field('lateJoin').checked) task.lateJoin = true;
  const attempts = Number(field('retry').value);
  if (attempts) task.retry = {max: attempts};
  const lines = field('env').value.split('\n').filter(line => line.trim());
  if (lines.length) detail.env = Object.fromEntries(lines.map(readVariable));
  return task;
}

function copyFields(names, target) {
  for (const name of names) {
    const {value} = field(name);
    if (!value) continue;
    const isNumber = DURATION_FIELDS.includes(name) && /^-?[\d.]+$/.test(value);
    target[name] = isNumber ? Number(value) : value;
  }
}

function readVariable(line) {
  const equals = line.indexOf('=');
  if (equals < 1) throw new Error('Environment: expected NAME=value, got ' + line);
  return [line.slice(0, equals).trim(), line.slice(equals + 1)];
}

function renderCommandHint() {
  const program = 'A program, then one argument per line.';
  const shell =
    'A shell command, run by bash if the machine has it, else by sh. Ctrl+Enter runs it.';
  setText(byId('command-hint'), field('argv').checked ? program : shell);
}

// The task that was sent last, as text, and its id. If the answer is lost and the same task is sent
// again, it has the same id, so that it runs once.
let lastSent = {text: '', id: ''};

async function submitForm() {
  const task = readForm();
  const text = JSON.stringify(task);
  if (lastSent.text !== text) lastSent = {text, id: newTaskId()};
  const {id} = lastSent;
  try {
    await post('task', {...task, id});
  } catch (error) {
    const alreadyThere = error.status === 409 && error.data?.id === id;
    if (!alreadyThere) throw error;
  }
  lastSent = {text: '', id: ''};
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
form.oninput = () => {
  renderCommandHint();
  previewAfterTyping();
};
