// The form for a new task: what it has no fields for and takes over from the task that it was filled in from.

const REST_OF_TASK = ['onSuccess', 'onFailure', 'onEnd'];
const REST_OF_DETAIL = ['scriptArgs', 'user', 'mergeOutput', 'stdinBase64'];

// The probes of that task, its retry, and the rest of it and of its detail.
let copiedProbes;
let copiedRetry;
let copiedRest = {task: {}, detail: {}};

function copyRest({probes, retry, ...task}) {
  copiedProbes = probes;
  copiedRetry = retry;
  copiedRest = {task: pick(task, REST_OF_TASK), detail: pick(task.detail ?? {}, REST_OF_DETAIL)};
  offerRest('probes', 'With its probes: ', probes?.map(probe => probe.name));
  offerRest('rest', 'With its ', [...Object.keys(copiedRest.task), ...Object.keys(copiedRest.detail)]);
}

function pick(object, names) {
  return Object.fromEntries(names.filter(name => name in object).map(name => [name, object[name]]));
}

// A box to tick, if there is something to take over.
function offerRest(name, text, parts) {
  const label = byId('submit-' + name);
  field(name).checked = parts?.length;
  setVisible(label, parts?.length);
  setText(label.lastElementChild, safeLine(text + (parts ?? []).join(', ')));
}

// Adds to a task what is taken over.
function addRest(task) {
  if (field('probes').checked) task.probes = copiedProbes;
  const attempts = Number(field('retry').value);
  if (attempts) task.retry = {...copiedRetry, max: attempts};
  if (!field('rest').checked) return;
  Object.assign(task, copiedRest.task);
  Object.assign(task.detail, copiedRest.detail);
}
