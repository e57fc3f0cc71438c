// What the web page does in the browser itself: it keeps the conversations there, and copies what was said.
(() => {
  // One item for each conversation, so that two tabs do not write over each other's. Pages that share a server
  // name have different paths.
  const PREFIX = `yayi ${location.pathname} `;
  const EMPTY = { id: "", title: "", system: null, messages: [] };
  const inChinese = () => navigator.language.startsWith("zh");

  // A browser that lets pages store nothing refuses each access to its storage.
  function attempt(action, otherwise = null) {
    try {
      return action();
    } catch {
      return otherwise;
    }
  }

  const parsed = (key) => attempt(() => JSON.parse(localStorage.getItem(key)));

  // Newest first.
  function conversations() {
    return attempt(() => Object.keys(localStorage), [])
      .filter((key) => key.startsWith(PREFIX))
      .map(parsed)
      .filter((conversation) => conversation?.messages?.length)
      .sort((one, other) => other.time - one.time);
  }

  function list(notes = {}) {
    const titles = conversations().map(({ id, title }) => [title, id]);
    return { titles, forgotten: 0, kept: true, wide: innerWidth > 900, ...notes };
  }

  // A refreshed tab goes on with the conversation that it showed.
  function read(id) {
    attempt(() => sessionStorage.setItem(PREFIX, id));
    return parsed(PREFIX + id) ?? EMPTY;
  }

  function keep(conversation) {
    attempt(() => sessionStorage.setItem(PREFIX, conversation.id));
    if (!conversation.messages.length) {
      attempt(() => localStorage.removeItem(PREFIX + conversation.id));
      return list();
    }
    const item = JSON.stringify({ ...conversation, time: Date.now() });
    const others = conversations().filter(({ id }) => id !== conversation.id);
    for (let forgotten = 0; ; forgotten++) {
      try {
        localStorage.setItem(PREFIX + conversation.id, item);
        return list({ forgotten });
      } catch {
        if (!others.length) return list({ forgotten, kept: false });
        localStorage.removeItem(PREFIX + others.pop().id);
      }
    }
  }

  function forget(id) {
    if (id && confirm(inChinese() ? "删除此对话？" : "Delete this conversation?")) {
      attempt(() => localStorage.removeItem(PREFIX + id));
      id = "";
    }
    return [read(id), list()];
  }

  window.yayi = { list, read, keep, forget, last: () => read(attempt(() => sessionStorage.getItem(PREFIX)) ?? "") };

  async function copy(text, button) {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
    } else {
      // Browsers have no clipboard for pages that come by http from another machine.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
  }

  // gradio's buttons below a message copy and edit what it was given to show, which is HTML. What was said
  // stands in its <pre>.
  function onMessageButton(event, button) {
    const buttons = button.closest(".message-buttons");
    const row = buttons.previousElementSibling;
    const text = row.querySelector(".said > pre")?.textContent;
    if (text === undefined) return; // it is being edited
    if (button === buttons.querySelector("button")) {
      event.stopImmediatePropagation();
      copy(text, button);
      return;
    }
    setTimeout(() => {
      const area = row.querySelector("textarea.edit-textarea");
      if (!area) return; // it was not the button that edits
      area.value = text;
      area.dispatchEvent(new Event("input", { bubbles: true }));
    });
  }

  // Before gradio's own listeners.
  addEventListener(
    "click",
    (event) => {
      const button = event.target.closest?.("button");
      if (button?.matches(".copy-code")) {
        copy(button.closest(".code").querySelector("code").textContent, button);
      } else if (button?.closest(".message-buttons")) {
        onMessageButton(event, button);
      }
    },
    true,
  );
})();
