// All schedules: when they fire next, and what became of their last firings.

// Schedules as last fetched.
let schedules = [];

const schedulesView = {
  id: 'schedules',
  title: 'Schedules',
  tab: 'schedules',
  search: 'schedules-search',

  open() {},

  async poll(signal) {
    schedules = (await get('schedule', signal)).data;
    this.render();
    return 5000;
  },

  render() {
    const search = byId('schedules-search').value;
    const shown = schedules
      .filter(schedule => matches([schedule.id, ruleOf(schedule), commandOf(schedule.task)], search))
      .sort((a, b) => compareNames(a.id, b.id));
    renderList(byId('schedules'), shown, schedule => schedule.id, makeScheduleRow);
    setVisible(byId('schedules-empty'), !shown.length);
    const none = 'No schedule yet. One submits a task again and again, at times of a calendar.';
    setText(byId('schedules-empty'), schedules.length ? 'No schedule matches.' : none);
  },
};

function scheduleAddress(id) {
  return '#/schedule/' + encodeURIComponent(id);
}

// "30 2 * * MON-FRI, Europe/Berlin", "every 5 min"
function ruleOf({cron, every, timeZone}) {
  return cron ? `${cron}, ${timeZone}` : 'every ' + formatLimit(every);
}

// "2038-03-28T03:00:00+02:00" as clocks show it there: "2038-03-28 03:00:00".
function formatThere(local) {
  return local.slice(0, 19).replace('T', ' ');
}

// A firing's time for the viewer, and in the zone of the schedule.
function bothTimes({utc, local}, {timeZone}) {
  return `${formatTime(utc)} here, ${formatThere(local)} ${timeZone}`;
}

function makeScheduleRow() {
  const state = makeBadge();
  const name = element('b', 'ellipsis');
  const rule = element('span', 'ellipsis soft');
  const next = element('span', 'num ellipsis');
  const there = element('span', 'num soft ellipsis');
  const cells = element('span', 'cells');
  const message = element('span', 'soft ellipsis message');
  const link = element('a', 'open ellipsis', name);
  const what = element('span', 'both', link, rule);
  const row = element('div', 'row schedule', state, what, element('span', 'both', next, there), cells, message);
  return {
    el: element('li', {}, row),
    update(schedule) {
      const [first] = schedule.next;
      link.href = scheduleAddress(schedule.id);
      setBadge(state, schedule.state);
      setLine(name, schedule.id);
      setLine(rule, ruleOf(schedule));
      rule.title = safeLine(commandOf(schedule.task));
      setText(next, first ? `${formatTime(first.utc)} · ${formatUntil(first.utc)}` : 'no further firing');
      setText(there, first ? `${formatThere(first.local)} ${schedule.timeZone}` : '');
      renderFirings(cells, schedule);
      setLine(message, messageOf(schedule));
      setVisible(message, message.shownText);
    },
  };
}

function messageOf({msg, waits}) {
  return joinPresent([msg, waits && `due at ${formatTime(waits.utc)}: ${waits.reason}`]);
}

// A cell for each of the last firings, the newest last: a link where a task came of it.
function renderFirings(box, schedule) {
  renderList(box, schedule.history, firingKey, ({task}) => ({
    el: task ? element('a', {href: taskAddress(task)}) : element('span', {role: 'img'}),
    update(firing) {
      setClass(this.el, `cell ${firing.outcome} s-${firingState(firing)}`);
      this.el.title = firingText(firing, schedule);
      this.el.setAttribute('aria-label', this.el.title);
    },
  }));
}

function firingKey({utc, task, outcome}) {
  return [utc, task, outcome].join(' ');
}

// What gives a firing its colour: the state of its task, else what became of it.
function firingState({outcome, state}) {
  return outcome === 'fired' ? state ?? 'running' : outcome;
}

function firingText(firing, schedule) {
  const {outcome, state, reason, through, byHand} = firing;
  return joinPresent([
    bothTimes(firing, schedule),
    through && 'until ' + formatTime(through),
    outcome + (state ? ', ' + state : ''),
    byHand && 'by hand',
    safeLine(reason),
  ]);
}

byId('schedules-search').oninput = () => schedulesView.render();
