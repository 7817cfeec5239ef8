// One schedule: its next and last firings, and the buttons that change it. The form is in submit_schedule.js.

// The cells show all that the server remembers; so many are listed in words.
const MOST_LISTED_FIRINGS = 20;

const scheduleView = {
  id: 'schedule',
  title: 'Schedule',
  tab: 'schedules',
  needsName: true,
  missing: 'No such schedule',
  // The schedule as last fetched.
  schedule: null,

  open([name]) {
    this.name = name;
    clear(...['facts', 'next', 'cells', 'history'].map(part => byId('schedule-' + part)));
    for (const part of ['command', 'message']) setText(byId('schedule-' + part), '');
    setLine(byId('schedule-name'), name);
    byId('schedule-edit').href = '#/submit?' + new URLSearchParams({schedule: name});
  },

  async poll(signal) {
    this.schedule = (await get(this.path(), signal)).data;
    this.render();
    return 2000;
  },

  path(what = '') {
    return `schedule/${encodeURIComponent(this.name)}${what}`;
  },

  render() {
    const {schedule} = this;
    const {state, next, history, task} = schedule;
    setBadge(byId('schedule-state'), state);
    setText(byId('schedule-message'), safeLine(messageOf(schedule)));
    setText(byId('schedule-command'), safeText(commandOf(task)));
    setVisible(byId('schedule-pause'), state === 'active');
    setVisible(byId('schedule-resume'), state === 'paused');
    renderFacts(byId('schedule-facts'), scheduleFacts(schedule));
    renderList(byId('schedule-next'), next, ({utc}) => utc, makeNextRow);
    setVisible(byId('schedule-next-empty'), !next.length);
    renderFirings(byId('schedule-cells'), schedule);
    const last = history.slice(-MOST_LISTED_FIRINGS).reverse();
    renderList(byId('schedule-history'), last, firingKey, makeFiringRow);
    setVisible(byId('schedule-history-empty'), !history.length);
  },

  back() {
    return '#/schedules';
  },
};

function scheduleFacts(schedule) {
  const {task} = schedule;
  return [
    ['When', ruleOf(schedule), 'mono'],
    ['Machines', task.machinePattern, 'mono'],
    ['Mode', task.mode === 'any' ? 'any one' : 'all'],
    ['If the one before has not ended', schedule.overlap],
    ['After an absence', schedule.catchUp],
    ['May start so late', formatLimit(schedule.startDeadline)],
    ['From', formatTime(schedule.from)],
    ['Until', formatTime(schedule.until)],
    ['Times', schedule.times],
    ['Fired', schedule.fired],
    ['Failed in a row', schedule.failures],
    ['Pauses after failures', schedule.pauseAfterFailures],
    ['Keeps', schedule.keep],
    ['Zone data', schedule.timeZoneData],
    ['Made by', schedule.madeBy],
    ['Made', formatTime(schedule.createdAt)],
  ];
}

function makeNextRow() {
  const [here, there, left] = [element('span', 'num'), element('span', 'num'), element('span', 'num soft right')];
  return {
    el: element('li', {}, element('div', 'row firing', here, there, left)),
    update({utc, local}) {
      setText(here, formatTime(utc) + ' here');
      setText(there, `${formatThere(local)} ${scheduleView.schedule.timeZone}`);
      setText(left, formatUntil(utc));
    },
  };
}

function makeFiringRow({task}) {
  const state = makeBadge();
  const time = element('span', 'num');
  const why = element('span', 'soft ellipsis');
  const children = [state, time, why];
  const row = task
    ? element('a', {class: 'row firing', href: taskAddress(task)}, ...children)
    : element('div', 'row firing', ...children);
  return {
    el: element('li', {}, row),
    update(firing) {
      const {outcome, byHand, through, reason, state: end} = firing;
      setClass(state, 'state s-' + firingState(firing));
      setText(state.lastElementChild, outcome + (end ? ', ' + end : ''));
      setText(time, bothTimes(firing, scheduleView.schedule));
      setLine(why, joinPresent([byHand && 'by hand', through && 'until ' + formatTime(through), reason]));
    },
  };
}

// Asks, and then makes a call of the schedule.
function scheduleButton(button, title, consequence, yes, call) {
  onClick(byId(button), async () => {
    if (await confirmFirst(title, consequence, yes)) await call();
  });
}

async function changeSchedule(what) {
  scheduleView.schedule = (await post(scheduleView.path(what))).data;
  startPolling();
}

scheduleButton('schedule-pause', 'Pause this schedule?',
  'It does not fire until it is resumed. What is due in the meantime is not made up for.', 'Pause it',
  () => changeSchedule('/pause'));
scheduleButton('schedule-resume', 'Resume this schedule?',
  'It fires again from now on. What was due in the pause is not made up for.', 'Resume it',
  () => changeSchedule('/resume'));
scheduleButton('schedule-run', 'Run it now?',
  'It fires once more, beside its plan: the next firings stay as they are.', 'Run it',
  () => changeSchedule('/run'));
scheduleButton('schedule-delete', 'Delete this schedule?',
  'It does not fire any more, and its past is forgotten. Its tasks go on.', 'Delete it',
  async () => {
    await remove(scheduleView.path());
    location.hash = '#/schedules';
  });
