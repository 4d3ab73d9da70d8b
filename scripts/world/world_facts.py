"""The closed world's tables: every fact once, in English and Chinese side by side.

Owns plain data only; `world.py` and `world_stories.py` turn it into questions.
"""

_CAPITALS = """
France Paris 法国 巴黎|Italy Rome 意大利 罗马|Spain Madrid 西班牙 马德里|Germany Berlin 德国 柏林
England London 英国 伦敦|Japan Tokyo 日本 东京|China Beijing 中国 北京|Russia Moscow 俄罗斯 莫斯科
Egypt Cairo 埃及 开罗|Greece Athens 希腊 雅典|Turkey Ankara 土耳其 安卡拉|Iran Tehran 伊朗 德黑兰
Iraq Baghdad 伊拉克 巴格达|Syria Damascus 叙利亚 大马士革
Jordan Amman 约旦 安曼|Qatar Doha 卡塔尔 多哈
Nepal Kathmandu 尼泊尔 加德满都|Thailand Bangkok 泰国 曼谷|Vietnam Hanoi 越南 河内
Laos Vientiane 老挝 万象|Malaysia Kuala-Lumpur 马来西亚 吉隆坡|Indonesia Jakarta 印度尼西亚 雅加达
Philippines Manila 菲律宾 马尼拉|Korea Seoul 韩国 首尔|Mongolia Ulaanbaatar 蒙古 乌兰巴托
Pakistan Islamabad 巴基斯坦 伊斯兰堡|Bangladesh Dhaka 孟加拉国 达卡|Austria Vienna 奥地利 维也纳
Hungary Budapest 匈牙利 布达佩斯|Poland Warsaw 波兰 华沙|Czechia Prague 捷克 布拉格
Slovakia Bratislava 斯洛伐克 布拉迪斯拉发|Romania Bucharest 罗马尼亚 布加勒斯特
Bulgaria Sofia 保加利亚 索非亚
Serbia Belgrade 塞尔维亚 贝尔格莱德|Croatia Zagreb 克罗地亚 萨格勒布|Portugal Lisbon 葡萄牙 里斯本
Ireland Dublin 爱尔兰 都柏林|Iceland Reykjavik 冰岛 雷克雅未克|Norway Oslo 挪威 奥斯陆
Sweden Stockholm 瑞典 斯德哥尔摩|Finland Helsinki 芬兰 赫尔辛基|Denmark Copenhagen 丹麦 哥本哈根
Belgium Brussels 比利时 布鲁塞尔|Switzerland Bern 瑞士 伯尔尼|Ukraine Kyiv 乌克兰 基辅
Estonia Tallinn 爱沙尼亚 塔林|Latvia Riga 拉脱维亚 里加|Canada Ottawa 加拿大 渥太华
Cuba Havana 古巴 哈瓦那|Peru Lima 秘鲁 利马
Chile Santiago 智利 圣地亚哥|Ecuador Quito 厄瓜多尔 基多
Colombia Bogota 哥伦比亚 波哥大|Venezuela Caracas 委内瑞拉 加拉加斯
Uruguay Montevideo 乌拉圭 蒙得维的亚
Kenya Nairobi 肯尼亚 内罗毕|Ghana Accra 加纳 阿克拉
Morocco Rabat 摩洛哥 拉巴特|Australia Canberra 澳大利亚 堪培拉
"""

_OPPOSITES = """
hot cold 热 冷|big small 大 小|tall short 高 矮|fast slow 快 慢|old young 年老 年轻|good bad 好 坏
rich poor 富有 贫穷|wet dry 湿 干|full empty 满 空
open closed 开 关|heavy light 重 轻|thick thin 厚 薄
clean dirty 干净 肮脏|hard soft 硬 软|early late 早 晚
near far 近 远|true false 真 假|up down 上 下
left right 左 右|happy sad 快乐 悲伤|strong weak 强 弱|bright dark 明亮 黑暗|noisy quiet 吵闹 安静
sweet bitter 甜 苦|safe dangerous 安全 危险|easy difficult 容易 困难|cheap expensive 便宜 昂贵
brave cowardly 勇敢 胆小|wide narrow 宽 窄|deep shallow 深 浅
many few 多 少|inside outside 里面 外面
day night 白天 黑夜|win lose 赢 输|buy sell 买 卖|begin end 开始 结束
"""

_WORDS = """
fruit 水果: apple 苹果|banana 香蕉|pear 梨|grape 葡萄|peach 桃子|melon 甜瓜|lemon 柠檬|cherry 樱桃
animal 动物: cat 猫|dog 狗|horse 马|sheep 绵羊|tiger 老虎|rabbit 兔子|elephant 大象|monkey 猴子
furniture 家具: table 桌子|chair 椅子|bed 床|sofa 沙发|shelf 架子|cupboard 柜子|desk 书桌
clothing 衣服: shirt 衬衫|coat 外套|skirt 裙子|trousers 裤子|sock 袜子|glove 手套|scarf 围巾
vehicle 交通工具: car 汽车|train 火车|bicycle 自行车|ship 轮船|plane 飞机|bus 公共汽车|truck 卡车
drink 饮料: tea 茶|coffee 咖啡|milk 牛奶|juice 果汁|water 水|beer 啤酒
colour 颜色: red 红色|blue 蓝色|green 绿色|yellow 黄色|white 白色|black 黑色
instrument 乐器: piano 钢琴|violin 小提琴|flute 长笛|drum 鼓|guitar 吉他|trumpet 小号
flower 花: rose 玫瑰|tulip 郁金香|lily 百合|lotus 莲花|daisy 雏菊
tool 工具: hammer 锤子|saw 锯子|axe 斧头|shovel 铲子|needle 针
"""

_UNITS = """
metre metres 米 centimetres 厘米 100|kilometre kilometres 公里 metres 米 1000
hour hours 小时 minutes 分钟 60|minute minutes 分钟 seconds 秒 60|day days 天 hours 小时 24
week weeks 星期 days 天 7|year years 年 months 个月 12|kilogram kilograms 千克 grams 克 1000
decade decades 个年代 years 年 10|dozen dozens 打 pieces 个 12
century centuries 个世纪 years 年 100
"""

_COLOURS = """
snow 雪 white 白色|coal 煤 black 黑色|grass 草 green 绿色|blood 血 red 红色|salt 盐 white 白色
the-sky 天空 blue 蓝色|the-sea 大海 blue 蓝色|the-sun 太阳 yellow 黄色
milk 牛奶 white 白色|gold 金子 yellow 黄色
tomatoes 番茄 red 红色|fire 火焰 red 红色|leaves 树叶 green 绿色|bananas 香蕉 yellow 黄色
"""

_NAMES = """
Anna 安娜|Ben 本杰明|Carl 卡尔|Dora 朵拉|Emma 艾玛|Frank 弗兰克|Grace 格蕾丝|Henry 亨利
Ivy 艾薇|Jack 杰克|Kate 凯特|Leo 利奥|Mary 玛丽|Nick 尼克|Olga 奥尔加|Paul 保罗
Rosa 罗莎|Sam 萨姆|Tom 汤姆|Vera 薇拉
"""

_OBJECTS = "ball 球|book 书|pen 钢笔|key 钥匙|hat 帽子|cup 杯子|map 地图|bell 铃铛|coin 硬币|lamp 台灯"
_COUNTED = "apples 苹果|pears 梨|cakes 蛋糕|eggs 鸡蛋|nuts 坚果|plums 李子"
_TASTES = """
tea 茶|milk 牛奶|rice 米饭|bread 面包|soup 汤
fish 鱼|cheese 奶酪|honey 蜂蜜|coffee 咖啡|corn 玉米
"""
_PLACES = """
on the bed=床上|under the table=桌子下面|in the garden=花园里|in the kitchen=厨房里
behind the door=门后面|on the roof=屋顶上|near the river=河边|in the box=箱子里
"""
_PETS = "cat 猫|dog 狗|duck 鸭子|goat 山羊|fox 狐狸|mouse 老鼠|hen 母鸡|pig 猪"


def _rows(table: str, sep: str | None = None) -> list[list[str]]:
    cells = table.strip().replace("\n", "|").split("|")
    return [[word.replace("-", " ") for word in cell.split(sep)] for cell in cells]


CAPITALS = _rows(_CAPITALS)  # country, city, 国家, 城市
OPPOSITES = _rows(_OPPOSITES)  # word, opposite, 词, 反义词
UNITS = _rows(_UNITS)  # one, many, 单位, smaller unit, 小单位, factor
COLOURS = _rows(_COLOURS)  # thing, 东西, colour, 颜色
NAMES = _rows(_NAMES)
OBJECTS = _rows(_OBJECTS)
COUNTED = _rows(_COUNTED)
TASTES = _rows(_TASTES)
PLACES = _rows(_PLACES, "=")
PETS = _rows(_PETS)
WORDS = [  # word, 词, group, 类别
    [*pair, *head.split()]
    for head, tail in (line.split(": ") for line in _WORDS.strip().splitlines())
    for pair in _rows(tail)
]
WEEKDAYS = [
    ["Monday", "星期一"],
    ["Tuesday", "星期二"],
    ["Wednesday", "星期三"],
    ["Thursday", "星期四"],
    ["Friday", "星期五"],
    ["Saturday", "星期六"],
    ["Sunday", "星期日"],
]
MONTHS = [  # month, 月份, days in a common year
    ["January", "一月", "31"],
    ["February", "二月", "28"],
    ["March", "三月", "31"],
    ["April", "四月", "30"],
    ["May", "五月", "31"],
    ["June", "六月", "30"],
    ["July", "七月", "31"],
    ["August", "八月", "31"],
    ["September", "九月", "30"],
    ["October", "十月", "31"],
    ["November", "十一月", "30"],
    ["December", "十二月", "31"],
]
