// The form for a new task: what it waits for, what it belongs to, whom it tells. The texts are those of the
// command line: "build-1:ended", "URL=failed,stopped".

const WORKFLOW_TEXTS = ['group', 'uniqueKey', 'onDuplicate', 'description'];
const WORKFLOW_DURATIONS = ['spread', 'blockedTtl', 'resultTtl', 'failureTtl'];
const EVENTS = ['started', 'ended', 'failed', 'stopped', 'missed'];

// These fields as the API wants them; what is empty is undefined. Throws if one cannot be read.
function readWorkflow() {
  const after = [
    ...readLines('after').map(text => readEdge('task', text)),
    ...readLines('afterGroups').map(text => readEdge('group', text)),
  ];
  const notify = readLines('notify').map(readNotify);
  const task = {
    after: after.length ? after : undefined,
    tags: readPairs('tags', 'Tags: expected NAME=value'),
    limits: readList('limits'),
    notify: notify.length ? notify : undefined,
    priority: readText('priority') && numberOf(readText('priority')),
    replaceRunning: field('replaceRunning').checked || undefined,
  };
  for (const name of WORKFLOW_TEXTS) task[name] = readText(name);
  for (const name of WORKFLOW_DURATIONS) task[name] = readDuration(name);
  return task;
}

function readLines(name) {
  return field(name).value.split('\n').map(line => line.trim()).filter(Boolean);
}

// A number, or what is none as text: the server says what is wrong with it.
function numberOf(text) {
  return /^-?\d+$/.test(text) ? Number(text) : text;
}

function readEdge(kind, text) {
  const parts = /^(.*?)(?::(succeeded|failed|ended)|:min=(\d+%?))?(:perMachine)?$/.exec(text);
  const [, name, on, min, perMachine] = parts;
  return {[kind]: name, on, minSucceeded: min && shareOf(min), perMachine: perMachine && true};
}

function edgeLine({task, group, on = 'succeeded', minSucceeded, perMachine}) {
  const condition = on === 'succeeded' ? '' : ':' + on;
  const share = minSucceeded === undefined ? condition : ':min=' + minSucceeded;
  return (task ?? group) + share + (perMachine ? ':perMachine' : '');
}

function readNotify(text) {
  const equals = text.lastIndexOf('=');
  const on = text.slice(equals + 1).split(',');
  if (equals < 0 || !on.every(word => EVENTS.includes(word))) return {url: text};
  return {url: text.slice(0, equals), on};
}

function notifyLine({url, on}) {
  return on && on.join() !== 'ended' ? `${url}=${on}` : url;
}

// The values of the form's fields for these parts of a task.
function workflowValues(task) {
  const {after = [], tags, limits, notify = []} = task;
  const values = {
    after: after.filter(edge => edge.task).map(edgeLine).join('\n'),
    afterGroups: after.filter(edge => edge.group).map(edgeLine).join('\n'),
    tags: pairsText(tags),
    limits: limits?.join(' '),
    notify: notify.map(notifyLine).join('\n'),
    priority: task.priority,
  };
  for (const name of [...WORKFLOW_TEXTS, ...WORKFLOW_DURATIONS]) values[name] = task[name];
  return values;
}
