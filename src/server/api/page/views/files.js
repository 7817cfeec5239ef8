// The files that the server keeps: brought by people, or handed back by tasks.

const FIRST_FILES = 100;
const MORE_FILES = 400;

const filesView = {
  id: 'files',
  title: 'Files',
  tab: 'overview',
  search: 'files-search',
  most: FIRST_FILES,
  // As last fetched, the newest first.
  files: [],

  open() {
    this.most = FIRST_FILES;
  },

  async poll(signal) {
    const {data} = await get('blob', signal);
    this.files = data.sort((a, b) => parseTime(b.since) - parseTime(a.since));
    this.render();
    return 5000;
  },

  render() {
    const {files} = this;
    const search = byId('files-search').value;
    const found = files.filter(({name = '', sha256, tasks}) => matches([name, sha256, ...tasks], search));
    const total = formatBytes(sum(files.map(file => file.have ?? file.size)));
    setText(byId('files-summary'), files.length ? `${plural(files.length, 'file')} · ${total}` : '');
    renderList(byId('files'), found.slice(0, this.most), file => file.sha256, makeFileRow);
    setVisible(byId('files-more'), found.length > this.most);
    setVisible(byId('files-empty'), !found.length);
    const none = 'No file yet. The form for a new task takes one, and so does sidebike push.';
    setText(byId('files-empty'), files.length ? 'No file matches.' : none);
  },

  back() {
    return '#/overview';
  },
};

function makeFileRow({sha256, name}) {
  const title = element('b', 'ellipsis');
  const size = element('span', 'num');
  const since = element('span', 'num soft');
  const tasks = element('span', 'ellipsis');
  const drop = element('button', 'danger', 'Delete');
  const download = makeDownload(sha256, name || sha256);
  const row = element('div', 'row file', title, size, since, tasks, download, drop);
  onClick(drop, () => deleteFile(sha256, name || sha256));
  return {
    el: element('li', {}, row),
    update(file) {
      const half = file.have !== undefined;
      setLine(title, file.name || sha256.slice(0, 16));
      title.title = 'SHA-256 ' + sha256;
      setText(size, half ? `${formatBytes(file.have)} of ${formatBytes(file.size)}` : formatBytes(file.size));
      setText(since, formatAge(file.since));
      since.title = formatTime(file.since);
      setVisible(download, !half);
      // The server refuses to delete what a task needs that has not ended.
      drop.title = file.needed ? 'A task that has not ended needs it' : '';
      renderList(tasks, file.tasks, id => id, id => ({
        el: element('a', {href: taskAddress(id)}, id),
        update() {},
      }));
    },
  };
}

async function deleteFile(sha256, name) {
  const consequence = 'Tasks that name it can still be looked at, but not be run again.';
  if (!await confirmFirst(`Delete ${safeLine(name)}?`, consequence, 'Delete it')) return;
  await remove('blob/' + sha256);
  startPolling();
}

byId('files-search').oninput = () => filesView.render();
byId('files-more').onclick = () => {
  filesView.most += MORE_FILES;
  filesView.render();
};
