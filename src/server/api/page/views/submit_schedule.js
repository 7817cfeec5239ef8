// The form for a new task: what makes a schedule of it, and when that would fire.

const SCHEDULE_TEXTS = ['cron', 'timeZone', 'overlap', 'catchUp', 'from', 'until'];
const SCHEDULE_DURATIONS = ['every', 'startDeadline'];
const SCHEDULE_NUMBERS = ['times', 'pauseAfterFailures', 'keep'];
// The name that a preview has until one is given.
const NAMELESS = 'new';

// The schedule that the form was filled in from: it may be replaced without a question.
let editedSchedule = '';
// For what firings were previewed, and how often: a late answer is dropped.
let firingsPreviewedFor = '';
let firingPreviews = 0;

// The schedule of a task as the API wants it; what is empty is undefined.
function readSchedule(task) {
  const schedule = {task};
  for (const name of SCHEDULE_TEXTS) schedule[name] = readText(name);
  for (const name of SCHEDULE_DURATIONS) schedule[name] = readDuration(name);
  for (const name of SCHEDULE_NUMBERS) schedule[name] = readShare(name);
  return schedule;
}

// The values of the form's fields for a schedule.
function scheduleValues(schedule) {
  const names = [...SCHEDULE_TEXTS, ...SCHEDULE_DURATIONS, ...SCHEDULE_NUMBERS];
  const values = {scheduleId: schedule?.id};
  for (const name of names) values[name] = schedule?.[name];
  return values;
}

// Whether the form makes a schedule. One without a name is an error: it would run at once.
function isSchedule() {
  const id = field('scheduleId').value.trim();
  if (!id && (readText('cron') || readText('every'))) {
    throw new Error('As a schedule: give it a name');
  }
  return Boolean(id);
}

async function saveSchedule(task) {
  const id = field('scheduleId').value.trim();
  const path = 'schedule/' + encodeURIComponent(id);
  const schedule = readSchedule(task);
  if (id !== editedSchedule && await scheduleExists(path)) {
    const consequence = `There is a schedule ${id} already. It gets this task and these times.`;
    if (!await confirmFirst('Replace the schedule?', consequence, 'Replace it')) return;
  }
  await put(path, schedule);
  // The next task is not meant to be a schedule.
  forgetSchedule();
  location.hash = scheduleAddress(id);
}

async function scheduleExists(path) {
  try {
    await get(path);
    return true;
  } catch (error) {
    if (error.status === 404) return false;
    throw error;
  }
}

function forgetSchedule() {
  editedSchedule = '';
  for (const [name, value] of Object.entries(scheduleValues())) field(name).value = value ?? '';
}

// The next firings below the fields, as the server sees them.
async function previewFirings() {
  const {task, ...times} = readSchedule({machinePattern: '.*', detail: {command: 'true'}});
  const text = JSON.stringify(times);
  if (text === firingsPreviewedFor) return;
  firingsPreviewedFor = text;
  firingPreviews += 1;
  const count = firingPreviews;
  let shown = '';
  if (times.cron || times.every) {
    const id = field('scheduleId').value.trim() || NAMELESS;
    try {
      const path = `schedule/${encodeURIComponent(id)}?dryRun=1`;
      const {next} = (await put(path, {task, ...times})).data;
      const zone = {timeZone: times.timeZone ?? 'UTC'};
      shown = next.map(time => bothTimes(time, zone)).join('\n');
    } catch (error) {
      shown = error.message;
    }
  }
  if (count === firingPreviews) setText(byId('schedule-preview'), safeText(shown));
}

// What the button says where the form makes a schedule, else ''.
function scheduleButtonText() {
  return field('scheduleId').value.trim() ? 'Save the schedule' : '';
}

byId('zones').append(...Intl.supportedValuesOf('timeZone').map(zone => element('option', {value: zone})));
