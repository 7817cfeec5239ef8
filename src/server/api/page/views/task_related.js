// One task: what it belongs to (tags, group, limits), the tasks it has to do with, with their states, and whom
// it tells.

// So many states are asked for: each may be a long answer.
const MOST_RELATED_STATES = 20;
// States of others are asked for this often, in milliseconds.
const RELATED_PAUSE_MS = 5 * SECOND;

const CHILD_OF = {succeeded: 'On success', failed: 'On failure', ended: 'At the end'};
// Colours of what is known as something else elsewhere.
const NOTIFICATION_COLOURS = {pending: 'queued', delivered: 'done', dead: 'failed'};

// What the server said of others, by the path of the call: {state, name, ended}, and when that was.
let relatedStates = new Map();
let relatedFetchedAt = -Infinity;

function resetRelated() {
  relatedStates = new Map();
  relatedFetchedAt = -Infinity;
  clear(byId('task-marks'), byId('task-related'));
}

// Other tasks and groups: {what, name, href, path, note}.
function relatedTo(task) {
  const toTask = (what, id, note) =>
    ({what, name: id, href: taskAddress(id), path: 'task/' + encodeURIComponent(id), note});
  const toGroup = (what, name, note) =>
    ({what, name, href: groupAddress(name), path: `group/${encodeURIComponent(name)}?limit=1`, note});
  const {after = [], children = [], parent, rerunOf, group} = task;
  return [
    group && toGroup('Group', group),
    rerunOf && toTask('Rerun of', rerunOf),
    parent && toTask('Child of', parent),
    ...after.map(edge => edge.task
      ? toTask('After', edge.task, edgeText(edge))
      : toGroup('After group', edge.group, edgeText(edge))),
    ...children.map(child => toTask(CHILD_OF[child.on], child.task)),
  ].filter(Boolean);
}

// "if 90% succeed · met", "if it succeeds · on each machine"
function edgeText({on, minSucceeded, members, perMachine, met}) {
  const condition = minSucceeded === undefined
    ? {succeeded: 'if it succeeds', failed: 'if it fails', ended: 'however it ends'}[on]
    : `if ${minSucceeded} succeed`;
  const verdict = {true: 'met', false: 'cannot be met any more'}[met];
  return joinPresent([members && plural(members, 'member'), condition, perMachine && 'on each machine', verdict]);
}

// Asks for the states of others that may have changed; true if any still may.
async function pollRelated(task, signal) {
  const paths = [...new Set(relatedTo(task).map(({path}) => path))].slice(0, MOST_RELATED_STATES);
  const open = paths.filter(path => !relatedStates.get(path)?.ended);
  if (open.length && performance.now() - relatedFetchedAt >= RELATED_PAUSE_MS) {
    relatedFetchedAt = performance.now();
    await Promise.all(open.map(path => fetchRelated(path, signal)));
  }
  return paths.some(path => !relatedStates.get(path)?.ended);
}

async function fetchRelated(path, signal) {
  const states = relatedStates;
  try {
    const {state, name, finishedAt, tasks} = (await get(path, signal)).data;
    const ended = finishedAt || (tasks && !UNENDED_STATES.some(unended => tasks[unended]));
    states.set(path, {state, name, ended});
  } catch (error) {
    if (error.status !== 404) throw error;
    states.set(path, {state: 'gone', ended: true});
  }
}

// Whether a notification may still be on its way.
function isTelling({notifications}) {
  return notifications?.some(({state}) => state === 'pending');
}

function renderRelated(task) {
  setText(byId('task-description'), safeText(task.description));
  setVisible(byId('task-description'), task.description);
  renderList(byId('task-marks'), marksOf(task), ({href, text}) => href + text, ({href, text, title}) => ({
    el: element('a', {class: 'chip', href, title}, safeLine(text)),
    update() {},
  }));
  const rows = [...relatedTo(task), ...scheduleOf(task), ...notificationsOf(task)];
  const keyOf = ({what, name, key, href}) => [what, name, key, href].join('\n');
  renderList(byId('task-related'), rows, keyOf, makeRelatedRow);
  setVisible(byId('task-related'), rows.length);
}

// Links to what has the same tag or limit.
function marksOf({tags, limits = []}) {
  return [
    ...Object.entries(tags ?? {}).map(pair => pair.join('=')).map(tag => ({
      text: tag,
      href: '#/?' + new URLSearchParams({tag}),
      title: 'Tasks with this tag',
    })),
    ...limits.map(name => ({text: 'limit ' + name, href: '#/overview', title: 'How the limits are used'})),
  ];
}

function scheduleOf({schedule, scheduledFor}) {
  if (!schedule) return [];
  const note = 'due ' + formatTime(scheduledFor);
  return [{what: 'Schedule', name: schedule, href: scheduleAddress(schedule), note}];
}

// What it has told or is telling; before that, whom it will tell.
function notificationsOf({notify = [], notifications = []}) {
  const told = notifications.map(({id, url, event, state, tries, lastError, nextTry}) => ({
    what: 'Tells of ' + event,
    name: url,
    key: id,
    state,
    colour: NOTIFICATION_COLOURS[state],
    note: joinPresent([tries > 1 && `${tries} tries`, lastError, nextTry && 'again at ' + formatTime(nextTry)]),
  }));
  const planned = notify.flatMap(({url, on}) =>
    on.map(event => ({what: 'Tells of ' + event, name: url, note: 'not yet'})));
  const isTold = ({what, name}) => told.some(row => row.what === what && row.name === name);
  return [...told, ...planned.filter(row => !isTold(row))];
}

function makeRelatedRow({href}) {
  const what = element('span', 'soft');
  const name = element(href ? 'a' : 'span', 'ellipsis');
  const state = makeBadge();
  const note = element('span', 'soft ellipsis');
  return {
    el: element('li', 'row related', what, name, state, note),
    update(row) {
      const known = relatedStates.get(row.path);
      const shown = row.state ?? known?.state;
      setText(what, row.what);
      setLine(name, known?.name ?? row.name);
      if (href) name.href = href;
      name.title = safeLine(row.name);
      setClass(state, 'state s-' + (row.colour ?? shown));
      setText(state.lastElementChild, shown ?? '');
      setVisible(state, shown);
      setLine(note, row.note);
    },
  };
}
