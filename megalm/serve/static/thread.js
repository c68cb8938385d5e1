// A conversation is a heap of exchanges, each with its whole prompt; what is read from top to bottom is one way through them.

// An exchange: {reply, parent, model, created, messages, choices: [{index, content, finish_reason, rating, edit}], state}.
// state: "running", "done", "stopped" (by the reader), "failed".

export function dialogOf(messages) {
  return messages.filter((message) => message.role === "user" || message.role === "assistant");
}

// What is shown of an answer, and what later prompts hold: the reader's own text where there is one.
export function textOf(exchange) {
  const [choice] = exchange.choices;
  return choice?.edit ?? choice?.content ?? "";
}

// The same with what else there is to say of it: a refusal, or an error.
export function spokenOf(exchange) {
  const text = textOf(exchange);
  const more = exchange.error?.message ?? exchange.choices[0].refusal ?? "";
  return more && more !== text ? `${text}\n${more}` : text;
}

function same(one, other) {
  return one.role === other.role && one.content === other.content;
}

function begins(messages, start) {
  return start.length <= messages.length && start.every((message, place) => same(message, messages[place]));
}

function says(exchange, text) {
  return exchange.choices.some((choice) => choice.content === text || choice.edit === text);
}

// The exchange that `exchange` goes on from: the one it names, else the newest with the words of its prompt. One that is not
// known is made of these words. null at the beginning.
function before(exchanges, exchange) {
  const dialog = dialogOf(exchange.messages);
  if (dialog.length < 3) return null;
  const [prompt, answer] = [dialog.slice(0, -2), dialog.at(-2).content];
  const ownOf = (one) => dialogOf(one.messages);
  const isNamed = (one) => one.reply === exchange.parent && ownOf(one).length === prompt.length;
  const fits = (one) =>
    ownOf(one).length === prompt.length && begins(ownOf(one), prompt) && says(one, answer);
  const unknown = {
    reply: null,
    model: "",
    messages: prompt,
    choices: [{ content: answer }],
    state: "done",
  };
  return exchanges.find(isNamed) ?? exchanges.findLast(fits) ?? unknown;
}

// All exchanges from the beginning to `leaf`.
function pathTo(exchanges, leaf) {
  const path = [leaf];
  for (let one = before(exchanges, leaf); one; one = before(exchanges, one)) path.unshift(one);
  return path;
}

// The turns up to the exchange `leaf`: [{exchange, variants}]. Variants are the other answers in its place, to the same
// prompt or to another wording of it.
export function turnsOf(exchanges, leaf) {
  if (!leaf) return [];
  const path = pathTo(exchanges, leaf);
  return path.map((exchange, place) => {
    if (exchange.reply === null) return { exchange, variants: [exchange] };
    const above = path[place - 1];
    const prompt = dialogOf(exchange.messages).slice(0, -1);
    const variants = exchanges.filter((one) => {
      const own = dialogOf(one.messages);
      if (own.length !== prompt.length + 1) return false;
      return above?.reply ? before(exchanges, one).reply === above.reply : begins(own, prompt);
    });
    return { exchange, variants };
  });
}

// The newest exchange that goes on from `exchange`, or itself.
export function newestBelow(exchanges, exchange) {
  return exchanges.findLast((one) => pathTo(exchanges, one).includes(exchange)) ?? exchange;
}

// Whether both answer the same prompt: what can be compared.
export function answersSame(one, other) {
  return one.messages.length === other.messages.length && begins(one.messages, other.messages);
}

// The prompt that goes on after `leaf` with `text`; `system` stands before it all.
export function promptAfter(leaf, text, system) {
  const before = leaf ? [...dialogOf(leaf.messages), { role: "assistant", content: textOf(leaf) }] : [];
  return withSystem([...before, { role: "user", content: text }], system);
}

export function withSystem(dialog, system) {
  return system.trim() ? [{ role: "system", content: system.trim() }, ...dialog] : dialog;
}

// A conversation as a text to keep.
export function asMarkdown(title, turns) {
  const parts = turns.flatMap(({ exchange }) => [
    `## You\n\n${dialogOf(exchange.messages).at(-1).content}`,
    `## ${exchange.model || "Answer"}\n\n${textOf(exchange)}`,
  ]);
  return `# ${title}\n\n${parts.join("\n\n")}\n`;
}
