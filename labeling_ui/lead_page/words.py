"""Words of the lead's page: English as written in the code, Chinese from this table.

Labels of Gradio's own components are translated in the browser (`label`, `I18N`); what the
server writes is translated here, by the language that the browser asks for (`translator`).
"""

from collections.abc import Callable
from typing import Any

import gradio as gr

Translate = Callable[..., str]
"""`t("{n} of {total}", n=1, total=2)`: the words in the visitor's language."""

CHINESE = {
    # the page
    "Ranking rounds": "排序轮次",
    "Signed in as": "当前登录：",
    "Sign out": "退出登录",
    "Rank yourself": "自己标注",
    "Round": "轮次",
    "Refresh": "刷新",
    "Open": "开放",
    "Pause": "暂停",
    "Close to new cards": "不再发放新卡片",
    "Freeze although rankings are missing": "即使排序不全也冻结",
    "Freeze for good": "永久冻结",
    "Progress": "进度",
    "Labelers": "标注者",
    "Disputes": "分歧",
    "Export": "导出",
    "New round": "新轮次",
    "People": "人员",
    "Guidelines": "指南",
    "Audit log": "操作日志",
    "No round yet.": "还没有轮次。",
    "unnamed round": "未命名轮次",
    "open": "开放",
    "paused": "已暂停",
    "closed": "已关闭",
    "frozen": "已冻结",
    # figures of a round
    "State": "状态",
    "Rankings": "排序数",
    "{done} of {wanted}": "{done} / {wanted}",
    "Prompts": "提示数",
    "{n}, {out} left out": "{n}，另有 {out} 个被排除",
    "Time left": "剩余时间",
    "unknown yet": "尚不可知",
    "done": "已完成",
    "{low} to {high} min": "{low} 至 {high} 分钟",
    "{low} to {high} h": "{low} 至 {high} 小时",
    "about {n} min": "约 {n} 分钟",
    "about {n} h": "约 {n} 小时",
    "95 %: {low} to {high}, n {n}": "95 %：{low} 至 {high}，n {n}",
    "Pairs agreed on": "成对一致率",
    "Krippendorff's alpha": "Krippendorff α",
    "too little to tell": "数据太少",
    "Ranked by": "排序者",
    "people": "人工",
    "Digest": "摘要",
    "not frozen": "未冻结",
    "Agreement is low: look at the disputes, and at whether the guidelines settle them.": (
        "一致性较低：请查看分歧，并检查指南是否足以解决。"
    ),
    # progress
    "Rankings by hour": "每小时排序数",
    "Rankings by day": "每天排序数",
    "hour": "小时",
    "day": "天",
    "rankings": "排序数",
    "{n} rankings in {unit} {k}": "第 {k} {unit}：{n} 个排序",
    "Rankings by labeler": "各标注者的排序数",
    "Skipped cards": "跳过的卡片",
    "Nothing was skipped.": "没有跳过的卡片。",
    "Unsafe responses": "不安全的回复",
    "No response was called unsafe.": "没有回复被标为不安全。",
    "Responses that name what wrote them": "自报来源的回复",
    "None was found.": "未发现。",
    "{n} of {total} responses, e.g. “{phrase}”. Whoever reads one is no longer blind.": (
        "{total} 条回复中有 {n} 条，例如“{phrase}”。读到它的人不再是盲评。"
    ),
    "Nothing has been ranked yet.": "还没有任何排序。",
    "language": "语言",
    "expertise": "专业知识",
    "broken": "内容有误",
    "distress": "令人不适",
    "other": "其他",
    "violence": "暴力",
    "sexual": "色情",
    "hate": "仇恨",
    "self_harm": "自残",
    "illegal": "违法",
    "privacy": "隐私",
    # labelers
    "Labeler": "标注者",
    "Seconds a card (median)": "每张秒数（中位）",
    "Ties": "并列",
    "Agreement with the others": "与他人一致",
    "Gold and attention passed": "通过检查项",
    "Repeats alike": "重复一致",
    "First shown on top": "首位排第一",
    "Longer preferred": "偏好较长",
    "expected {share} %": "期望 {share} %",
    "Dot and bar: the share and its 95 % interval, from 0 to 100 %. The thin line marks what "
    "chance would give. Agreement is with the other labelers of the same prompts; agreement and "
    "repeats count pairs of responses, a tie against a verdict half. With few prompts the "
    "interval is wide and the figure says little.": (
        "圆点和横线：比例及其 95 % 区间，范围 0 至 100 %。细线为随机水平。"
        "“与他人一致”与同一提示的其他标注者相比；一致率和重复率按回复对计算，并列与判定相对时计一半。提示很少时区间很宽，数值意义不大。"
    ),
    # disputes
    "Nobody contradicts anybody so far.": "目前没有互相矛盾的排序。",
    "{n} prompts on which labelers contradict each other, the sharpest first.": (
        "标注者意见相左的提示共 {n} 个，分歧最大的在前。"
    ),
    "The first {n} are shown.": "仅显示前 {n} 个。",
    "{share} % opposed, {n} labelers": "{share} % 相反，{n} 位标注者",
    "Prompt": "提示",
    "Response {n}": "回复 {n}",
    "Best first, tied responses with =": "最好的在前，= 表示并列",
    "(shortened)": "（已截短）",
    # export
    "Parquet tables of this round: annotations, comparisons, consensus, labelers, the groups that "
    "reward-model training reads, and a manifest with their SHA-256. Names stay here; people leave "
    "as pseudonyms. Gold, attention and repeat cards never reach training.": (
        "本轮的 Parquet 表：标注、比较、共识、标注者、奖励模型训练所读的分组，"
        "以及含 SHA-256 的清单。"
        "姓名不会导出，只有代号。检查项和重复项不会进入训练。"
    ),
    "Leave out": "排除",
    "Held-out share of prompts": "留出提示的比例",
    "Seed of the split": "划分的随机种子",
    "Download": "下载",
    "There is nothing to export yet.": "还没有可导出的内容。",
    # a new round
    "Candidates": "候选回复",
    "Name of the round": "轮次名称",
    "Rankings per prompt": "每个提示的排序数",
    "Share of gold cards": "金标卡片比例",
    "Share of attention checks": "注意力检查比例",
    "Share of repeats": "重复卡片比例",
    "Gold from the settled round": "金标取自已冻结的轮次",
    "How much better": "好多少",
    "A reason in words": "文字理由",
    "Criteria, scored 1 to 5 (comma between)": "评分标准，1 至 5 分（逗号分隔）",
    "A card is held for (minutes)": "卡片保留时间（分钟）",
    "Publish the round": "发布轮次",
    "off": "不询问",
    "optional": "可选",
    "required": "必填",
    "{place}: {n} prompts, {when}": "{place}：{n} 个提示，{when}",
    "Published {name}: {wanted} rankings of {prompts} prompts, {checks} checks beside them.": (
        "已发布 {name}：{prompts} 个提示，共需 {wanted} 个排序，另有 {checks} 个检查项。"
    ),
    "These candidates were a round already; nothing was added.": (
        "这些候选已是一个轮次，未添加任何内容。"
    ),
    "Candidates are found under {place}. The same candidates with the same settings are always "
    "the same round.": "候选回复取自 {place}。相同的候选和设置始终是同一轮次。",
    "No candidates were found under {place}. A run writes them in its candidates stage.": (
        "在 {place} 下没有找到候选回复。它们由流程的 candidates 阶段写出。"
    ),
    "This server was started without a folder of candidates; start it with --candidates FOLDER.": (
        "服务器启动时没有指定候选文件夹；请用 --candidates FOLDER 启动。"
    ),
    # people and guidelines
    "Name": "名字",
    "Pseudonym": "代号",
    "Role": "角色",
    "Admitted": "可登录",
    "Password": "密码",
    "yes": "是",
    "no": "否",
    "labeler": "标注者",
    "lead": "负责人",
    "Make an invitation": "生成邀请",
    "Give this role": "赋予该角色",
    "Suspend": "停用",
    "Admit again": "重新启用",
    "Invitation (works once, for a week)": "邀请（一次有效，一周内）",
    "Nobody has signed in yet.": "还没有人登录。",
    "English (Markdown)": "英文（Markdown）",
    "Chinese (Markdown)": "中文（Markdown）",
    "Publish as a new version": "发布为新版本",
    "Version {version}, accepted by {n}.": "第 {version} 版，已有 {n} 人接受。",
    "Everyone has to accept a new version before their next card.": "每人须先接受新版本才能继续。",
    "There are no guidelines yet.": "还没有指南。",
    # audit log
    "When (UTC)": "时间（UTC）",
    "Who": "谁",
    "What": "操作",
    "On": "对象",
    "Detail": "详情",
    "Nothing was done yet.": "还没有任何操作。",
}

FREEZE_QUESTION = {
    "en": "Freeze this round for good? Nobody can rank in it or change anything afterwards.",
    "zh": "确定永久冻结本轮？之后任何人都无法再排序或修改。",
}

I18N = gr.I18n(en={}, zh=CHINESE, **{"zh-CN": CHINESE})


def label(words: str) -> Any:
    """A component's label, which the browser translates."""
    return I18N(words)


def translator(accept_language: str) -> Translate:
    """Words in the language that a browser's Accept-Language header asks for first."""
    table = CHINESE if accept_language.strip().lower().startswith("zh") else {}

    def translate(words: str, **values: Any) -> str:
        text = table.get(words, words)
        return text.format(**values) if values else text

    return translate
