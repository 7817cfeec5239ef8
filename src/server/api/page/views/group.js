// One group of tasks: its state and that of its members.

const groupTaskList = new TaskList(
  byId('group-tasks'),
  byId('group-tasks-more'),
  byId('group-tasks-empty'),
);

const groupView = {
  id: 'group',
  title: 'Group',
  tab: 'home',
  needsName: true,
  missing: 'No such group',

  open([name]) {
    if (name !== this.name) {
      groupTaskList.reset('&group=' + encodeURIComponent(name));
      clear(groupTaskList.box, byId('group-facts'), byId('group-bar'));
    }
    this.name = name;
    setLine(byId('group-name'), name);
    byId('group-list').href = '#/?' + new URLSearchParams({group: name});
  },

  async poll(signal) {
    const path = `group/${encodeURIComponent(this.name)}?limit=1`;
    const [{data}] = await Promise.all([get(path, signal), groupTaskList.poll(signal)]);
    this.render(data);
    return 2000;
  },

  render({state, tasks, executions, worstExitCode}) {
    const count = sum(Object.values(tasks));
    const ended = count - unendedCount(tasks);
    setBadge(byId('group-state'), state);
    setVisible(byId('group-cancel'), ended < count);
    setText(byId('group-progress'), joinPresent([
      `${formatCount(ended)} of ${plural(count, 'task')} ended`,
      countsText(tasks, TASK_STATES),
    ]));
    renderBar(byId('group-bar'), executions);
    setText(byId('group-executions'), 'Executions: ' + (countsText(executions, STATES) || 'none yet'));
    renderFacts(byId('group-facts'), [['Worst exit code', worstExitCode]]);
  },
};

function groupAddress(name) {
  return '#/group/' + encodeURIComponent(name);
}

function unendedCount(tasks) {
  return sum(UNENDED_STATES.map(state => tasks[state] ?? 0));
}

// "2 running, 1 failed": what there is of these states.
function countsText(counts, states) {
  return states.filter(state => counts[state])
    .map(state => `${formatCount(counts[state])} ${stateName(state)}`)
    .join(', ');
}

onClick(byId('group-cancel'), async () => {
  const path = `group/${encodeURIComponent(groupView.name)}/cancel`;
  const {data} = await get(`group/${encodeURIComponent(groupView.name)}?limit=1`);
  const left = unendedCount(data.tasks);
  const {running, delivered, queued, held} = data.executions;
  const consequence = `${plural(left, 'task')} of it will be canceled. ` +
    `${running + delivered} of their executions run and are killed, ${queued + held} never start.`;
  if (!await confirmFirst('Cancel the group?', consequence, 'Cancel them')) return;
  await post(path);
  startPolling();
});
