// ---- Words: English as written in the code, Chinese from this table ------------------------

const CHINESE = {
  "Rank responses": "为回复排序",
  "Sign out": "退出登录",
  "My work": "我的标注",
  "中文": "English",
  "{n} of {total}": "第 {n} 个，共 {total} 个",
  Prompt: "提示",
  Conversation: "对话",
  Person: "用户",
  Assistant: "助手",
  Instruction: "指令",
  "Which responses are better?": "哪些回复更好？",
  "Rank each one: 1 is best, {n} is worst. The same number is a tie.":
    "为每条回复排名：1 为最好，{n} 为最差。相同数字表示并列。",
  "Show full texts": "显示全文",
  "Show raw text": "显示原始文本",
  "Show formatted text": "显示排版文本",
  "(empty response)": "（空回复）",
  "(cut off)": "（被截断）",
  "Response {label}": "回复 {label}",
  "Rank {n} for response {label}": "将回复 {label} 排在第 {n}",
  "Rank of {label}": "{label} 的排名",
  Unacceptable: "不可接受",
  Unsafe: "不安全",
  "Unsafe: {category}": "不安全：{category}",
  "Why is {label} unsafe?": "{label} 为何不安全？",
  "It is not unsafe": "并非不安全",
  violence: "暴力",
  sexual: "色情",
  hate: "仇恨",
  self_harm: "自残",
  illegal: "违法",
  privacy: "隐私",
  other: "其他",
  "Your ranking": "你的排序",
  "Nothing ranked yet": "尚未排序",
  "To rank:": "待排序：",
  "not graded": "未分级",
  slightly: "略好",
  clearly: "明显更好",
  much: "好得多",
  "How much better is {a} than {b}: {grade}. Press to change.":
    "{a} 比 {b} 好多少：{grade}。按下可更改。",
  "Response {label}, drag to rank": "回复 {label}，可拖动排序",
  "unacceptable from here": "此处起不可接受",
  "Why? (optional)": "理由（可选）",
  "Why? (needed)": "理由（必填）",
  "{label} much better": "{label} 好得多",
  "{label} better": "{label} 更好",
  "{label} slightly better": "{label} 略好",
  "Equally good": "一样好",
  "Which is better, and by how much": "哪个更好，好多少",
  "rank, then the next response": "排名并跳到下一条",
  "choose a response": "选择回复",
  clear: "清除",
  submit: "提交",
  skip: "跳过",
  unacceptable: "不可接受",
  unsafe: "不安全",
  "how much better": "好多少",
  "raw text": "原始文本",
  "undo last": "撤销上一个",
  "tie with the one above": "与上一条并列",
  "move up or down": "上移或下移",
  Submit: "提交",
  "Submit change": "提交修改",
  "Leave as it was": "保持原样",
  Skip: "跳过",
  Undo: "撤销",
  "{n} to rank": "还有 {n} 条待排序",
  "Ready. Not submitted yet": "已就绪，尚未提交",
  "Grade each gap": "请为每个间隔分级",
  "A reason is needed": "需要填写理由",
  "Changing what you submitted (version {n})": "正在修改已提交的内容（第 {n} 版）",
  "Saving…": "正在保存…",
  Saved: "已保存",
  "Saved, kept aside: the round was complete or closed": "已保存，但另行存放：本轮已完成或已关闭",
  "Not saved. {message} Trying again…": "未保存。{message} 正在重试…",
  "Not saved: {message}": "未保存：{message}",
  "Skipping…": "正在跳过…",
  "Not skipped: {message}": "未跳过：{message}",
  "The server does not answer.": "服务器没有响应。",
  "The next prompt did not come": "未能取得下一个提示",
  "{message} Trying again…": "{message} 正在重试…",
  "All done, thank you": "全部完成，谢谢",
  "This round is complete.": "本轮已完成。",
  "You ranked {n}.": "你完成了 {n} 个。",
  "Nothing to rank yet": "暂时没有可排序的内容",
  "No round is open. This page looks again by itself.": "没有开放的轮次。本页会自动刷新。",
  "The round is paused": "本轮已暂停",
  "It goes on when the lead opens it again. This page looks again by itself.":
    "负责人重新开放后继续。本页会自动刷新。",
  "Nothing left for you right now, thank you": "目前没有你的任务了，谢谢",
  "{have} of {want} rankings are in; the rest is with other people.":
    "已有 {have}/{want} 个排序；其余由他人处理。",
  "Why skip this prompt?": "为何跳过此提示？",
  "Skip this prompt": "跳过此提示",
  "It goes to someone else and does not come back to you.": "它会交给其他人，不会再给你。",
  Cancel: "取消",
  Close: "关闭",
  "I do not read this language well enough": "我不太能读懂这种语言",
  "I lack the knowledge to judge this": "我缺乏判断所需的知识",
  "The prompt or the responses are broken": "提示或回复有问题",
  "I would rather not read this": "我不想读这些内容",
  "Another reason": "其他原因",
  "What you ranked": "你的排序记录",
  "Choose one to change it. Every version is kept.": "选择一项进行修改。每个版本都会保留。",
  "Nothing yet.": "暂无。",
  "skipped": "已跳过",
  "version {n}": "第 {n} 版",
  Guidelines: "指南",
  "I have read this and accept it": "我已阅读并接受",
};

let language = kept("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

function t(words, values = {}) {
  const text = (language === "zh" && CHINESE[words]) || words;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

function categoryWords(category) {
  return t(category).replace("_", "-");
}

function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  keep("language", language);
  if (view) {
    saveDraft();
    showCard({ ...view.payload, revising: view.revising });
  } else next();
}
